// SPDX-License-Identifier: Apache-2.0
// PrRoIPool by the published algorithm, put straight on the CPU: what `prroi_pool.py` measures
// against. Nothing else uses it.
//
// As the published CUDA kernels do, it gives every element of the output (box, channel, bin) a walk
// over the unit cells of the map that its bin meets, and works out the integral of the bilinear
// interpolant over the piece of each cell anew for every channel. Maps are [images, channels,
// height, width]. Boxes are spread over threads; in the gradient to the features it is channels, so
// that no two threads add to the same place.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

struct Map {
  const float* values;
  int height, width;

  float At(int y, int x) const {
    return y < 0 || x < 0 || y >= height || x >= width ? 0.0f : values[y * width + x];
  }
  float Interpolate(float y, float x) const {
    const int top = static_cast<int>(std::floor(y)), left = static_cast<int>(std::floor(x));
    const float dy = y - top, dx = x - left;
    return (1 - dy) * ((1 - dx) * At(top, left) + dx * At(top, left + 1)) +
           dy * ((1 - dx) * At(top + 1, left) + dx * At(top + 1, left + 1));
  }
};

// Integrals over [low, high] within a unit cell that begins at `cell`, of 1 - t and of t.
struct Pair {
  float first, second;
};
Pair CellIntegral(float low, float high, int cell) {
  const float a = low - cell, b = high - cell;
  const float second = 0.5f * (b * b - a * a);
  return {(b - a) - second, second};
}

struct Bin {
  float y1, x1, y2, x2;
};

// Calls visit(y, x, wy, wx) for every piece of a cell inside the bin.
template <typename Visit>
void ForCells(const Bin& bin, Visit visit) {
  for (int y = static_cast<int>(std::floor(bin.y1)); y < std::ceil(bin.y2); ++y) {
    for (int x = static_cast<int>(std::floor(bin.x1)); x < std::ceil(bin.x2); ++x) {
      visit(y, x,
            CellIntegral(std::max(bin.y1, static_cast<float>(y)), std::min(bin.y2, y + 1.0f), y),
            CellIntegral(std::max(bin.x1, static_cast<float>(x)), std::min(bin.x2, x + 1.0f), x));
    }
  }
}

// Integral of the interpolant along one edge of a bin, at y = `at` or x = `at`.
float EdgeIntegral(const Map& map, float at, float low, float high, bool along_x) {
  float sum = 0;
  for (int cell = static_cast<int>(std::floor(low)); cell < std::ceil(high); ++cell) {
    const Pair w = CellIntegral(std::max(low, static_cast<float>(cell)),
                                std::min(high, cell + 1.0f), cell);
    const float near = along_x ? map.Interpolate(at, cell) : map.Interpolate(cell, at);
    const float far = along_x ? map.Interpolate(at, cell + 1) : map.Interpolate(cell + 1, at);
    sum += w.first * near + w.second * far;
  }
  return sum;
}

Bin BinOf(const float* box, float scale, int i, int j, int h, int w) {
  const float y1 = box[0] * scale, x1 = box[1] * scale;
  const float bin_h = (box[2] * scale - y1) / h, bin_w = (box[3] * scale - x1) / w;
  return {y1 + i * bin_h, x1 + j * bin_w, y1 + (i + 1) * bin_h, x1 + (j + 1) * bin_w};
}

template <typename Function>
void Spread(int total, int num_threads, Function function) {
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t) {
    threads.emplace_back([=] {
      for (int unit = t; unit < total; unit += num_threads) function(unit);
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace

extern "C" {

void port_forward(const float* features, const float* boxes, const int32_t* box_indices,
                  int channels, int height, int width, int num_boxes, int h, int w, float scale,
                  int num_threads, float* output) {
  Spread(num_boxes, num_threads, [=](int n) {
    for (int c = 0; c < channels; ++c) {
      const int64_t plane = static_cast<int64_t>(box_indices[n]) * channels + c;
      const Map map = {features + plane * height * width, height, width};
      for (int i = 0; i < h; ++i) {
        for (int j = 0; j < w; ++j) {
          const Bin bin = BinOf(boxes + 4 * n, scale, i, j, h, w);
          float sum = 0;
          ForCells(bin, [&](int y, int x, Pair wy, Pair wx) {
            sum += wy.first * (wx.first * map.At(y, x) + wx.second * map.At(y, x + 1)) +
                   wy.second * (wx.first * map.At(y + 1, x) + wx.second * map.At(y + 1, x + 1));
          });
          const float area = (bin.y2 - bin.y1) * (bin.x2 - bin.x1);
          output[((static_cast<int64_t>(n) * channels + c) * h + i) * w + j] =
              area > 0 ? sum / area : 0;
        }
      }
    }
  });
}

void port_feature_gradient(const float* upstream, const float* boxes, const int32_t* box_indices,
                           int channels, int height, int width, int num_boxes, int h, int w,
                           float scale, int num_threads, float* d_features) {
  Spread(channels, num_threads, [=](int c) {
    for (int n = 0; n < num_boxes; ++n) {
      const int64_t plane = static_cast<int64_t>(box_indices[n]) * channels + c;
      float* target = d_features + plane * height * width;
      auto add = [=](int y, int x, float value) {
        if (y >= 0 && x >= 0 && y < height && x < width) target[y * width + x] += value;
      };
      for (int i = 0; i < h; ++i) {
        for (int j = 0; j < w; ++j) {
          const Bin bin = BinOf(boxes + 4 * n, scale, i, j, h, w);
          const float area = (bin.y2 - bin.y1) * (bin.x2 - bin.x1);
          if (!(area > 0)) continue;
          const float d =
              upstream[((static_cast<int64_t>(n) * channels + c) * h + i) * w + j] / area;
          ForCells(bin, [&](int y, int x, Pair wy, Pair wx) {
            add(y, x, d * wy.first * wx.first);
            add(y, x + 1, d * wy.first * wx.second);
            add(y + 1, x, d * wy.second * wx.first);
            add(y + 1, x + 1, d * wy.second * wx.second);
          });
        }
      }
    }
  });
}

void port_box_gradient(const float* features, const float* upstream, const float* output,
                       const float* boxes, const int32_t* box_indices, int channels, int height,
                       int width, int num_boxes, int h, int w, float scale, int num_threads,
                       float* d_boxes) {
  Spread(num_boxes, num_threads, [=](int n) {
    double d[4] = {0, 0, 0, 0};
    for (int c = 0; c < channels; ++c) {
      const int64_t plane = static_cast<int64_t>(box_indices[n]) * channels + c;
      const Map map = {features + plane * height * width, height, width};
      for (int i = 0; i < h; ++i) {
        for (int j = 0; j < w; ++j) {
          const Bin bin = BinOf(boxes + 4 * n, scale, i, j, h, w);
          const float area = (bin.y2 - bin.y1) * (bin.x2 - bin.x1);
          if (!(area > 0)) continue;
          const int64_t place = ((static_cast<int64_t>(n) * channels + c) * h + i) * w + j;
          const float pooled = output[place], g = upstream[place] / area;
          const float to_y1 = g * (pooled * (bin.x2 - bin.x1) -
                                   EdgeIntegral(map, bin.y1, bin.x1, bin.x2, true));
          const float to_y2 = g * (EdgeIntegral(map, bin.y2, bin.x1, bin.x2, true) -
                                   pooled * (bin.x2 - bin.x1));
          const float to_x1 = g * (pooled * (bin.y2 - bin.y1) -
                                   EdgeIntegral(map, bin.x1, bin.y1, bin.y2, false));
          const float to_x2 = g * (EdgeIntegral(map, bin.x2, bin.y1, bin.y2, false) -
                                   pooled * (bin.y2 - bin.y1));
          const float yi = static_cast<float>(i) / h, yj = static_cast<float>(i + 1) / h;
          const float xi = static_cast<float>(j) / w, xj = static_cast<float>(j + 1) / w;
          d[0] += to_y1 * (1 - yi) + to_y2 * (1 - yj);
          d[1] += to_x1 * (1 - xi) + to_x2 * (1 - xj);
          d[2] += to_y1 * yi + to_y2 * yj;
          d[3] += to_x1 * xi + to_x2 * xj;
        }
      }
    }
    for (int k = 0; k < 4; ++k) d_boxes[4 * n + k] = static_cast<float>(d[k]) * scale;
  });
}

}  // extern "C"
