// SPDX-License-Identifier: Apache-2.0
// PrRoIPool and RoIAlign as TensorFlow operations: what they take, their checks, and their kernels'
// calls.
//
// Each pooling has its gradients to the boxes and to the features as operations of their own, so that
// a graph drops the one that is not asked for (the paper's adversarial gradient goes to the boxes
// alone). PrRoiPool has one level. PrRoiPoolPyramid pools each box from every level, takes the maximum
// and remembers which level has it. RoiAlignPyramid pools each box from a level of its own and has no
// gradient to the boxes.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels_cpu.h"
#include "plan.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/threadpool.h"

#ifdef PRROI_POOL_CUDA
#include "kernels_cuda.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/platform/stream_executor.h"
#endif

namespace prroi {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Attributes of all operations. Some operations lack some.
struct Attributes {
  int64_t output_height = 0;
  int64_t output_width = 0;
  std::vector<float> spatial_scales;  // One of each level.
  bool is_pyramid = false;            // The levels are a list.
  int64_t samples_per_bin = 0;        // 0: PrRoIPool.
  float sample_offset = 0;

  int num_levels() const { return static_cast<int>(spatial_scales.size()); }
  bool is_roi_align() const { return samples_per_bin > 0; }
  bool takes_maximum() const { return is_pyramid && !is_roi_align(); }
  // Positions of inputs.
  int boxes() const { return num_levels(); }
  int box_indices() const { return num_levels() + 1; }
  int box_levels() const { return num_levels() + 2; }
  int upstream() const { return num_levels() + (is_roi_align() ? 3 : 2); }
  int winners() const { return upstream() + 1; }
};

template <typename Context>
tensorflow::Status GetPyramidAttributes(Context* context, Attributes* attributes) {
  attributes->is_pyramid = true;
  TF_RETURN_IF_ERROR(context->GetAttr("spatial_scales", &attributes->spatial_scales));
  int64_t num_levels;
  TF_RETURN_IF_ERROR(context->GetAttr("num_levels", &num_levels));
  if (num_levels != attributes->num_levels() || num_levels > kMaxLevels) {
    return InvalidArgument("there are ", num_levels, " levels and ", attributes->num_levels(),
                           " spatial_scales, must be as many and at most ", kMaxLevels);
  }
  // PrRoIPool's operations do not have these.
  if (!context->GetAttr("samples_per_bin", &attributes->samples_per_bin).ok()) {
    return tensorflow::OkStatus();
  }
  TF_RETURN_IF_ERROR(context->GetAttr("sample_offset", &attributes->sample_offset));
  if (attributes->samples_per_bin <= 0 || !std::isfinite(attributes->sample_offset)) {
    return InvalidArgument("samples_per_bin is ", attributes->samples_per_bin,
                           ", must be positive; sample_offset is ", attributes->sample_offset,
                           ", must be finite");
  }
  return tensorflow::OkStatus();
}

template <typename Context>
tensorflow::Status GetAttributes(Context* context, Attributes* attributes) {
  TF_RETURN_IF_ERROR(context->GetAttr("output_height", &attributes->output_height));
  TF_RETURN_IF_ERROR(context->GetAttr("output_width", &attributes->output_width));
  float spatial_scale;
  if (context->GetAttr("spatial_scale", &spatial_scale).ok()) {
    attributes->spatial_scales = {spatial_scale};
  } else {
    TF_RETURN_IF_ERROR(GetPyramidAttributes(context, attributes));
  }
  if (attributes->output_height <= 0 || attributes->output_width <= 0) {
    return InvalidArgument("output_size is (", attributes->output_height, ", ",
                           attributes->output_width, "), both must be positive");
  }
  for (const float scale : attributes->spatial_scales) {
    if (!(scale > 0) || !std::isfinite(scale)) {
      return InvalidArgument("spatial_scale is ", scale, ", must be positive and finite");
    }
  }
  return tensorflow::OkStatus();
}

// Ranks of features, boxes and what each box has one of; gives the shape of the output.
tensorflow::Status InferOutput(InferenceContext* context, const Attributes& attributes,
                               ShapeHandle* output) {
  ShapeHandle features, boxes, per_box;
  DimensionHandle unused, num_boxes, channels = context->UnknownDim();
  for (int level = 0; level < attributes.num_levels(); ++level) {
    TF_RETURN_IF_ERROR(context->WithRank(context->input(level), 4, &features));
    TF_RETURN_IF_ERROR(context->Merge(context->Dim(features, 3), channels, &channels));
  }
  TF_RETURN_IF_ERROR(context->WithRank(context->input(attributes.boxes()), 2, &boxes));
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(boxes, 1), 4, &unused));
  num_boxes = context->Dim(boxes, 0);
  for (int input = attributes.box_indices(); input < attributes.upstream(); ++input) {
    TF_RETURN_IF_ERROR(context->WithRank(context->input(input), 1, &per_box));
    TF_RETURN_IF_ERROR(context->Merge(num_boxes, context->Dim(per_box, 0), &num_boxes));
  }
  *output = context->MakeShape({num_boxes, context->MakeDim(attributes.output_height),
                                context->MakeDim(attributes.output_width), channels});
  return tensorflow::OkStatus();
}

// The pooled features, and the winners where there are any.
tensorflow::Status InferForward(InferenceContext* context) {
  Attributes attributes;
  TF_RETURN_IF_ERROR(GetAttributes(context, &attributes));
  ShapeHandle output;
  TF_RETURN_IF_ERROR(InferOutput(context, attributes, &output));
  for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, output);
  return tensorflow::OkStatus();
}

tensorflow::Status InferGradient(InferenceContext* context, Attributes* attributes) {
  TF_RETURN_IF_ERROR(GetAttributes(context, attributes));
  ShapeHandle output, unused;
  TF_RETURN_IF_ERROR(InferOutput(context, *attributes, &output));
  for (int input = attributes->upstream(); input < context->num_inputs(); ++input) {
    TF_RETURN_IF_ERROR(context->Merge(context->input(input), output, &unused));
  }
  return tensorflow::OkStatus();
}

tensorflow::Status InferGradBoxes(InferenceContext* context) {
  Attributes attributes;
  TF_RETURN_IF_ERROR(InferGradient(context, &attributes));
  context->set_output(0, context->input(attributes.boxes()));
  return tensorflow::OkStatus();
}

tensorflow::Status InferGradFeatures(InferenceContext* context) {
  Attributes attributes;
  TF_RETURN_IF_ERROR(InferGradient(context, &attributes));
  for (int level = 0; level < attributes.num_levels(); ++level) {
    context->set_output(level, context->input(level));
  }
  return tensorflow::OkStatus();
}

// Macros, because REGISTER_OP takes a chain of calls and no function could add to it.
#define PRROI_REGISTER_TYPES(NAME)                \
  REGISTER_OP(NAME)                               \
      .Attr("T: {half, bfloat16, float, double}") \
      .Attr("U: {float, double}")                 \
      .Attr("output_height: int")                 \
      .Attr("output_width: int")
#define PRROI_REGISTER(NAME)         \
  PRROI_REGISTER_TYPES(NAME)         \
      .Attr("spatial_scale: float")  \
      .Input("features: T")          \
      .Input("boxes: U")             \
      .Input("box_indices: int32")
#define PRROI_REGISTER_PYRAMID(NAME)         \
  PRROI_REGISTER_TYPES(NAME)                 \
      .Attr("num_levels: int >= 1")          \
      .Attr("spatial_scales: list(float)")   \
      .Input("features: num_levels * T")     \
      .Input("boxes: U")                     \
      .Input("box_indices: int32")
#define PRROI_REGISTER_ROI_ALIGN(NAME) \
  PRROI_REGISTER_PYRAMID(NAME)         \
      .Attr("samples_per_bin: int")    \
      .Attr("sample_offset: float")    \
      .Input("box_levels: int32")

PRROI_REGISTER("PrRoiPool").Output("pooled: T").SetShapeFn(InferForward).Doc(R"doc(
Mean of the bilinear interpolant of a feature map over each bin of each box, exactly.

features: [B, H, W, C].
boxes: [N, 4], y1 x1 y2 x2 in pixels of the image.
box_indices: [N], the image of each box.
pooled: [N, output_height, output_width, C].
spatial_scale: Nodes of the feature map per pixel of the image.
)doc");
PRROI_REGISTER("PrRoiPoolGradBoxes")
    .Input("upstream: T")
    .Output("d_boxes: U")
    .SetShapeFn(InferGradBoxes);
PRROI_REGISTER("PrRoiPoolGradFeatures")
    .Input("upstream: T")
    .Output("d_features: T")
    .SetShapeFn(InferGradFeatures);

PRROI_REGISTER_PYRAMID("PrRoiPoolPyramid")
    .Output("pooled: T")
    .Output("winners: uint8")
    .SetShapeFn(InferForward)
    .Doc(R"doc(
Element-wise maximum over the levels of what PrRoiPool pools from each.

features: [B, H, W, C] of each level.
boxes: [N, 4], y1 x1 y2 x2 in pixels of the image.
box_indices: [N], the image of each box.
pooled: [N, output_height, output_width, C].
winners: The number of the level that has the maximum, the first of those that tie.
spatial_scales: Nodes per pixel of the image of each level.
)doc");
PRROI_REGISTER_PYRAMID("PrRoiPoolPyramidGradBoxes")
    .Input("upstream: T")
    .Input("winners: uint8")
    .Output("d_boxes: U")
    .SetShapeFn(InferGradBoxes);
PRROI_REGISTER_PYRAMID("PrRoiPoolPyramidGradFeatures")
    .Input("upstream: T")
    .Input("winners: uint8")
    .Output("d_features: num_levels * T")
    .SetShapeFn(InferGradFeatures);

PRROI_REGISTER_ROI_ALIGN("RoiAlignPyramid")
    .Output("pooled: T")
    .SetShapeFn(InferForward)
    .Doc(R"doc(
Mean of samples of the bilinear interpolant in each bin of each box, on the box's level.

features: [B, H, W, C] of each level.
boxes: [N, 4], y1 x1 y2 x2 in pixels of the image.
box_indices: [N], the image of each box.
box_levels: [N], the number of each box's level among the features.
pooled: [N, output_height, output_width, C].
spatial_scales: Nodes per pixel of the image of each level.
samples_per_bin: Samples along each side of a bin.
sample_offset: Of the first sample from the edge of the bin, in distances between samples.
)doc");
PRROI_REGISTER_ROI_ALIGN("RoiAlignPyramidGradFeatures")
    .Input("upstream: T")
    .Output("d_features: num_levels * T")
    .SetShapeFn(InferGradFeatures);
#undef PRROI_REGISTER_ROI_ALIGN
#undef PRROI_REGISTER_PYRAMID
#undef PRROI_REGISTER
#undef PRROI_REGISTER_TYPES

// What the base class has checked and prepared for one call.
struct Call {
  Pyramid pyramid;
  std::vector<const Tensor*> features;
  const Tensor* boxes;
  const Tensor* box_indices;
  const Tensor* box_levels;  // nullptr but in RoIAlign.
  const Tensor* upstream;    // nullptr in the forward operations.
  const Tensor* winners;     // nullptr but in the gradients of the maximum.

  const int32_t* indices_data() const { return box_indices->flat<int32_t>().data(); }
  const int32_t* levels_data() const {
    return box_levels ? box_levels->flat<int32_t>().data() : nullptr;
  }
  const uint8_t* winners_data() const {
    return winners ? winners->flat<uint8_t>().data() : nullptr;
  }
};

// Checks ranks and sizes, which both devices can.
class PoolOpBase : public OpKernel {
 public:
  explicit PoolOpBase(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, GetAttributes(context, &attributes_));
  }

  void Compute(OpKernelContext* context) override {
    Call call;
    OP_REQUIRES_OK(context, Prepare(context, &call));
    Run(context, call);
  }

 protected:
  virtual void Run(OpKernelContext* context, const Call& call) = 0;

  static TensorShape OutputShape(const Shape& shape) {
    return TensorShape(
        {shape.num_boxes, shape.output_height, shape.output_width, shape.channels});
  }

  // The pooled features, and the winners where a maximum is taken (otherwise nullptr).
  tensorflow::Status AllocatePooled(OpKernelContext* context, const Call& call, Tensor** pooled,
                                    Tensor** winners) const {
    const TensorShape shape = OutputShape(call.pyramid.levels[0]);
    *winners = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, shape, pooled));
    if (!attributes_.takes_maximum()) return tensorflow::OkStatus();
    return context->allocate_output(1, shape, winners);
  }

 private:
  tensorflow::Status Prepare(OpKernelContext* context, Call* call) const {
    const auto optional = [&](bool is_there, int input) {
      return is_there && input < context->num_inputs() ? &context->input(input) : nullptr;
    };
    call->boxes = &context->input(attributes_.boxes());
    call->box_indices = &context->input(attributes_.box_indices());
    call->box_levels = optional(attributes_.is_roi_align(), attributes_.box_levels());
    call->upstream = optional(true, attributes_.upstream());
    call->winners = optional(attributes_.takes_maximum(), attributes_.winners());
    const TensorShape& boxes = call->boxes->shape();
    if (boxes.dims() != 2 || boxes.dim_size(1) != 4) {
      return InvalidArgument("boxes has shape ", boxes.DebugString(), ", must be [boxes, 4]");
    }
    TF_RETURN_IF_ERROR(CheckPerBox("box_indices", *call->box_indices, boxes.dim_size(0)));
    if (call->box_levels) {
      TF_RETURN_IF_ERROR(CheckPerBox("box_levels", *call->box_levels, boxes.dim_size(0)));
    }
    TF_RETURN_IF_ERROR(PrepareLevels(context, call));
    const TensorShape output = OutputShape(call->pyramid.levels[0]);
    TF_RETURN_IF_ERROR(CheckShape("upstream", call->upstream, output));
    return CheckShape("winners", call->winners, output);
  }

  static tensorflow::Status CheckPerBox(const char* name, const Tensor& tensor,
                                        int64_t num_boxes) {
    if (tensor.dims() == 1 && tensor.dim_size(0) == num_boxes) return tensorflow::OkStatus();
    return InvalidArgument(name, " has shape ", tensor.shape().DebugString(), ", must be [",
                           num_boxes, "] as there are boxes");
  }

  static tensorflow::Status CheckShape(const char* name, const Tensor* tensor,
                                       const TensorShape& shape) {
    if (tensor == nullptr || tensor->shape() == shape) return tensorflow::OkStatus();
    return InvalidArgument(name, " has shape ", tensor->shape().DebugString(), ", must be ",
                           shape.DebugString());
  }

  tensorflow::Status PrepareLevels(OpKernelContext* context, Call* call) const {
    call->pyramid = {};
    call->pyramid.num_levels = attributes_.num_levels();
    call->pyramid.levels_per_box = attributes_.takes_maximum() ? attributes_.num_levels() : 1;
    for (int level = 0; level < attributes_.num_levels(); ++level) {
      call->features.push_back(&context->input(level));
      const TensorShape& features = call->features[level]->shape();
      if (features.dims() != 4) {
        return InvalidArgument("features has shape ", features.DebugString(),
                               ", must be [images, height, width, channels]");
      }
      Shape* shape = &call->pyramid.levels[level];
      *shape = {features.dim_size(0),
                features.dim_size(1),
                features.dim_size(2),
                features.dim_size(3),
                call->boxes->dim_size(0),
                attributes_.output_height,
                attributes_.output_width,
                attributes_.spatial_scales[level],
                attributes_.samples_per_bin,
                attributes_.sample_offset};
      const Shape& first = call->pyramid.levels[0];
      if (shape->num_images != first.num_images || shape->channels != first.channels) {
        return InvalidArgument("features has shapes ", call->features[0]->shape().DebugString(),
                               " and ", features.DebugString(),
                               ", images and channels must be the same on all levels");
      }
      if (std::max(shape->height, shape->width) > INT32_MAX / 4 ||
          std::max(shape->output_height, shape->output_width) > INT32_MAX / 4) {
        return InvalidArgument("features of shape ", features.DebugString(), " and output_size (",
                               shape->output_height, ", ", shape->output_width,
                               ") are too large");
      }
    }
    return tensorflow::OkStatus();
  }

  Attributes attributes_;
};

// TensorFlow's types as the kernels know them.
template <typename T>
struct Stored {
  typedef T Type;
};
template <>
struct Stored<Eigen::half> {
  typedef Half Type;
};
template <>
struct Stored<Eigen::bfloat16> {
  typedef BFloat16 Type;
};

template <typename T>
const typename Stored<T>::Type* Data(const Tensor& tensor) {
  return reinterpret_cast<const typename Stored<T>::Type*>(tensor.flat<T>().data());
}
template <typename T>
typename Stored<T>::Type* Data(Tensor* tensor) {
  return reinterpret_cast<typename Stored<T>::Type*>(tensor->flat<T>().data());
}

// What the processor has, or less where PRROI_POOL_INSTRUCTIONS says 'baseline' or 'avx2' (for tests).
enum class Instructions { kBaseline, kAvx2, kAvx512 };

Instructions DetectInstructions() {
#ifdef PRROI_POOL_X86
  const char* variable = std::getenv("PRROI_POOL_INSTRUCTIONS");
  const std::string wanted = variable ? variable : "";
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (wanted == "baseline" || !has_avx2) return Instructions::kBaseline;
  return wanted == "avx2" || !has_avx512 ? Instructions::kAvx2 : Instructions::kAvx512;
#else
  return Instructions::kBaseline;
#endif
}

#ifdef PRROI_POOL_X86
#define PRROI_SELECT_X86(NAME)                                    \
  if (instructions == Instructions::kAvx512) return avx512::NAME; \
  if (instructions == Instructions::kAvx2) return avx2::NAME;
#else
#define PRROI_SELECT_X86(NAME)
#endif
#define PRROI_SELECT(TYPE, NAME)                                  \
  const CpuKernels<TYPE>& Select(const TYPE*) {                   \
    static const Instructions instructions = DetectInstructions(); \
    PRROI_SELECT_X86(NAME)                                        \
    return baseline::NAME;                                        \
  }
PRROI_SELECT(Half, kHalfKernels)
PRROI_SELECT(BFloat16, kBFloat16Kernels)
PRROI_SELECT(float, kFloatKernels)
PRROI_SELECT(double, kDoubleKernels)
#undef PRROI_SELECT
#undef PRROI_SELECT_X86

// The kernels of the best instruction set that this processor has.
template <typename T>
const CpuKernels<typename Stored<T>::Type>& Kernels() {
  return Select(static_cast<const typename Stored<T>::Type*>(nullptr));
}

typedef std::function<void(int64_t, int64_t, std::function<void(int64_t, int64_t)>)> ParallelFor;

ParallelFor ThreadPool(OpKernelContext* context) {
  auto* workers = context->device()->tensorflow_cpu_worker_threads()->workers;
  return [workers](int64_t total, int64_t cost, std::function<void(int64_t, int64_t)> function) {
    workers->ParallelFor(total, cost, function);
  };
}

// Whether values of one of the inputs with an integer for each box are below a limit.
tensorflow::Status CheckIntegers(const char* name, const int32_t* values, int64_t count,
                                 int64_t limit) {
  for (int64_t n = 0; n < count; ++n) {
    if (values[n] < 0 || values[n] >= limit) {
      return InvalidArgument(name, "[", n, "] is ", values[n], ", must be in [0, ", limit, ")");
    }
  }
  return tensorflow::OkStatus();
}

template <typename U>
tensorflow::Status CheckValues(const Call& call) {
  const Shape& shape = call.pyramid.levels[0];
  const U* boxes = call.boxes->flat<U>().data();
  for (int64_t n = 0; n < shape.num_boxes; ++n) {
    const U* box = boxes + 4 * n;
    if (!std::isfinite(box[0]) || !std::isfinite(box[1]) || !std::isfinite(box[2]) ||
        !std::isfinite(box[3])) {
      return InvalidArgument("boxes[", n, "] is (", box[0], ", ", box[1], ", ", box[2], ", ",
                             box[3], "), must be finite");
    }
  }
  if (call.box_levels) {
    TF_RETURN_IF_ERROR(CheckIntegers("box_levels", call.levels_data(), shape.num_boxes,
                                     call.pyramid.num_levels));
  }
  return CheckIntegers("box_indices", call.indices_data(), shape.num_boxes, shape.num_images);
}

// Checks the values, and plans the boxes for the kernel.
template <typename T, typename U>
class CpuPoolOp : public PoolOpBase {
 public:
  using PoolOpBase::PoolOpBase;
  typedef typename Stored<T>::Type Element;

 protected:
  void Run(OpKernelContext* context, const Call& call) override {
    OP_REQUIRES_OK(context, CheckValues<U>(call));
    const ParallelFor parallel_for = ThreadPool(context);
    const BoxPlans<Real<Element>> plans(call.pyramid, call.boxes->flat<U>().data(),
                                        call.indices_data(), call.levels_data(), parallel_for);
    RunPlanned(context, call, plans.data(), parallel_for);
  }

  virtual void RunPlanned(OpKernelContext* context, const Call& call,
                          const BoxPlan<Real<Element>>* plans,
                          const ParallelFor& parallel_for) = 0;

  static std::vector<const Element*> FeaturesOf(const Call& call) {
    std::vector<const Element*> features;
    for (const Tensor* level : call.features) features.push_back(Data<T>(*level));
    return features;
  }
};

// Cycles of one row of bins, roughly: what decides how work is cut for the threads.
int64_t CostOfRow(const Shape& shape) { return 4 * shape.output_width * shape.channels; }

template <typename T, typename U>
class ForwardOp : public CpuPoolOp<T, U> {
 public:
  using CpuPoolOp<T, U>::CpuPoolOp;
  typedef typename Stored<T>::Type Element;

 protected:
  void RunPlanned(OpKernelContext* context, const Call& call,
                  const BoxPlan<Real<Element>>* plans, const ParallelFor& parallel_for) override {
    Tensor *pooled, *winners;
    OP_REQUIRES_OK(context, this->AllocatePooled(context, call, &pooled, &winners));
    if (pooled->NumElements() == 0) return;
    const std::vector<const Element*> features = this->FeaturesOf(call);
    Element* output = Data<T>(pooled);
    uint8_t* to_winners = winners ? winners->flat<uint8_t>().data() : nullptr;
    const Shape& shape = call.pyramid.levels[0];
    parallel_for(shape.num_boxes * shape.output_height,
                 call.pyramid.levels_per_box * CostOfRow(shape), [&](int64_t begin, int64_t end) {
                   if (to_winners) {
                     Kernels<T>().maximum(call.pyramid, plans, features.data(), begin, end, output,
                                          to_winners);
                   } else {
                     Kernels<T>().forward(call.pyramid, plans, features.data(), begin, end,
                                          output);
                   }
                 });
  }
};

template <typename T, typename U>
class GradBoxesOp : public CpuPoolOp<T, U> {
 public:
  using CpuPoolOp<T, U>::CpuPoolOp;
  typedef typename Stored<T>::Type Element;

 protected:
  void RunPlanned(OpKernelContext* context, const Call& call,
                  const BoxPlan<Real<Element>>* plans, const ParallelFor& parallel_for) override {
    Tensor* d_boxes = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, call.boxes->shape(), &d_boxes));
    const std::vector<const Element*> features = this->FeaturesOf(call);
    const Upstream<Element> upstream = {Data<T>(*call.upstream), call.winners_data()};
    const Shape& shape = call.pyramid.levels[0];
    const int64_t cost =
        4 * call.pyramid.num_levels * shape.output_height * CostOfRow(shape);
    std::vector<double> gradients(4 * shape.num_boxes);
    parallel_for(shape.num_boxes, cost, [&](int64_t begin, int64_t end) {
      Kernels<T>().box_gradient(call.pyramid, plans, features.data(), upstream, begin, end,
                                gradients.data());
    });
    std::copy(gradients.begin(), gradients.end(), d_boxes->flat<U>().data());
  }
};

template <typename T, typename U>
class GradFeaturesOp : public CpuPoolOp<T, U> {
 public:
  using CpuPoolOp<T, U>::CpuPoolOp;
  typedef typename Stored<T>::Type Element;

 protected:
  void RunPlanned(OpKernelContext* context, const Call& call,
                  const BoxPlan<Real<Element>>* plans, const ParallelFor& parallel_for) override {
    for (int level = 0; level < call.pyramid.num_levels; ++level) {
      Tensor* d_features = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(level, call.features[level]->shape(),
                                                       &d_features));
      if (d_features->NumElements() == 0) continue;
      const bool has_own_plans = call.pyramid.levels_per_box > 1;
      const int64_t num_boxes = call.pyramid.levels[level].num_boxes;
      RunLevel(call, level, plans + (has_own_plans ? level * num_boxes : 0), parallel_for,
               Data<T>(d_features));
    }
  }

 private:
  static void RunLevel(const Call& call, int level, const BoxPlan<Real<Element>>* plans,
                       const ParallelFor& parallel_for, Element* d_features) {
    const Shape& shape = call.pyramid.levels[level];
    const BoxesByImage boxes(shape, call.indices_data(), call.levels_data(), level);
    const Upstream<Element> upstream = {Data<T>(*call.upstream), call.winners_data()};
    // As if every box reached over half of the rows.
    const auto num_boxes = static_cast<int64_t>(boxes.order.size());
    const int64_t boxes_of_row = num_boxes / (2 * shape.num_images) + 1;
    parallel_for(shape.num_images * shape.height, boxes_of_row * CostOfRow(shape),
                 [&](int64_t begin, int64_t end) {
                   Kernels<T>().feature_gradient(shape, plans, boxes.order.data(),
                                                 boxes.first_of_image.data(), upstream, begin,
                                                 end, d_features);
                 });
  }
};

#ifdef PRROI_POOL_CUDA

// The number that the CUDA launchers have for a type.
template <typename T>
struct CudaType;
template <>
struct CudaType<Eigen::half> {
  static constexpr int kNumber = kPrRoiPoolHalf;
};
template <>
struct CudaType<Eigen::bfloat16> {
  static constexpr int kNumber = kPrRoiPoolBFloat16;
};
template <>
struct CudaType<float> {
  static constexpr int kNumber = kPrRoiPoolFloat;
};
template <>
struct CudaType<double> {
  static constexpr int kNumber = kPrRoiPoolDouble;
};

enum class Operation { kForward, kGradBoxes, kGradFeatures };

// All operations on a GPU. Values of boxes, indices and levels are not looked at: that would wait for
// the GPU. kernels_cuda.h says what becomes of bad ones.
template <Operation kOperation, typename T, typename U>
class CudaPoolOp : public PoolOpBase {
 public:
  using PoolOpBase::PoolOpBase;

 protected:
  void Run(OpKernelContext* context, const Call& call) override {
    if constexpr (kOperation == Operation::kForward) {
      Forward(context, call);
    } else if constexpr (kOperation == Operation::kGradBoxes) {
      GradBoxes(context, call);
    } else {
      GradFeatures(context, call);
    }
  }

 private:
  static constexpr int kType = CudaType<T>::kNumber;
  static constexpr int kBoxesAreDouble = std::is_same<U, double>::value;

  void Forward(OpKernelContext* context, const Call& call) {
    Tensor *pooled, *winners, workspace;
    OP_REQUIRES_OK(context, AllocatePooled(context, call, &pooled, &winners));
    if (pooled->NumElements() == 0) return;
    OP_REQUIRES_OK(context, Allocate(context, PrRoiPoolCudaForwardWorkspace(&call.pyramid, kType),
                                     &workspace));
    const std::vector<const void*> features = FeaturesOf(call);
    Require(context, PrRoiPoolCudaForward(
                         kType, kBoxesAreDouble, &call.pyramid, features.data(),
                         call.boxes->data(), call.indices_data(), call.levels_data(),
                         workspace.data(), pooled->data(),
                         winners ? winners->flat<uint8_t>().data() : nullptr, Stream(context)));
  }

  void GradBoxes(OpKernelContext* context, const Call& call) {
    Tensor *d_boxes = nullptr, workspace;
    OP_REQUIRES_OK(context, context->allocate_output(0, call.boxes->shape(), &d_boxes));
    if (d_boxes->NumElements() == 0) return;
    OP_REQUIRES_OK(context,
                   Allocate(context, PrRoiPoolCudaBoxGradientWorkspace(&call.pyramid, kType),
                            &workspace));
    const std::vector<const void*> features = FeaturesOf(call);
    Require(context, PrRoiPoolCudaBoxGradient(
                         kType, kBoxesAreDouble, &call.pyramid, features.data(),
                         call.boxes->data(), call.indices_data(), call.upstream->data(),
                         call.winners_data(), workspace.data(), d_boxes->data(),
                         Stream(context)));
  }

  void GradFeatures(OpKernelContext* context, const Call& call) {
    std::vector<void*> d_features;
    int64_t num_elements = 0;
    for (int level = 0; level < call.pyramid.num_levels; ++level) {
      Tensor* tensor = nullptr;
      OP_REQUIRES_OK(context,
                     context->allocate_output(level, call.features[level]->shape(), &tensor));
      d_features.push_back(tensor->data());
      num_elements += tensor->NumElements();
    }
    if (num_elements == 0) return;
    Tensor workspace;
    OP_REQUIRES_OK(context,
                   Allocate(context, PrRoiPoolCudaFeatureGradientWorkspace(&call.pyramid, kType),
                            &workspace));
    Require(context, PrRoiPoolCudaFeatureGradient(
                         kType, kBoxesAreDouble, &call.pyramid, call.boxes->data(),
                         call.indices_data(), call.levels_data(), call.upstream->data(),
                         call.winners_data(), workspace.data(), d_features.data(),
                         Stream(context)));
  }

  static std::vector<const void*> FeaturesOf(const Call& call) {
    std::vector<const void*> features;
    for (const Tensor* level : call.features) features.push_back(level->data());
    return features;
  }

  static tensorflow::Status Allocate(OpKernelContext* context, int64_t bytes, Tensor* workspace) {
    return context->allocate_temp(tensorflow::DT_UINT8, TensorShape({bytes}), workspace);
  }

  static void* Stream(OpKernelContext* context) {
    return context->op_device_context()->stream()->platform_specific_handle().stream;
  }

  void Require(OpKernelContext* context, int error) const {
    OP_REQUIRES(context, error == 0,
                tensorflow::errors::Internal(name(), ": CUDA says ",
                                             PrRoiPoolCudaErrorString(error)));
  }
};

#endif  // PRROI_POOL_CUDA

#define PRROI_REGISTER_ON(DEVICE, NAME, T, U, ...)                                            \
  REGISTER_KERNEL_BUILDER(                                                                    \
      Name(NAME).Device(tensorflow::DEVICE).TypeConstraint<T>("T").TypeConstraint<U>("U"),    \
      __VA_ARGS__);
#ifdef PRROI_POOL_CUDA
#define PRROI_REGISTER_CUDA(NAME, OPERATION, T, U) \
  PRROI_REGISTER_ON(DEVICE_GPU, NAME, T, U, CudaPoolOp<Operation::OPERATION, T, U>)
#else
#define PRROI_REGISTER_CUDA(NAME, OPERATION, T, U)
#endif
#define PRROI_REGISTER_KERNELS(NAME, CLASS, OPERATION, T, U) \
  PRROI_REGISTER_ON(DEVICE_CPU, NAME, T, U, CLASS<T, U>)      \
  PRROI_REGISTER_CUDA(NAME, OPERATION, T, U)
#define PRROI_REGISTER(T, U)                                                                 \
  PRROI_REGISTER_KERNELS("PrRoiPool", ForwardOp, kForward, T, U)                             \
  PRROI_REGISTER_KERNELS("PrRoiPoolGradBoxes", GradBoxesOp, kGradBoxes, T, U)                \
  PRROI_REGISTER_KERNELS("PrRoiPoolGradFeatures", GradFeaturesOp, kGradFeatures, T, U)       \
  PRROI_REGISTER_KERNELS("PrRoiPoolPyramid", ForwardOp, kForward, T, U)                      \
  PRROI_REGISTER_KERNELS("PrRoiPoolPyramidGradBoxes", GradBoxesOp, kGradBoxes, T, U)         \
  PRROI_REGISTER_KERNELS("PrRoiPoolPyramidGradFeatures", GradFeaturesOp, kGradFeatures, T, U) \
  PRROI_REGISTER_KERNELS("RoiAlignPyramid", ForwardOp, kForward, T, U)                       \
  PRROI_REGISTER_KERNELS("RoiAlignPyramidGradFeatures", GradFeaturesOp, kGradFeatures, T, U)
#define PRROI_REGISTER_BOTH(T) PRROI_REGISTER(T, float) PRROI_REGISTER(T, double)
PRROI_REGISTER_BOTH(Eigen::half)
PRROI_REGISTER_BOTH(Eigen::bfloat16)
PRROI_REGISTER_BOTH(float)
PRROI_REGISTER_BOTH(double)

}  // namespace
}  // namespace prroi
