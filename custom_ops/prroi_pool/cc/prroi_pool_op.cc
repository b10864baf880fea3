// SPDX-License-Identifier: Apache-2.0
// PrRoIPool as TensorFlow operations: what they take, their checks, and their kernels' calls.
//
// Three operations: the pooling, its gradient to the boxes and its gradient to the features. The
// gradients are apart so that a graph drops the one that nobody asks for (the paper's adversarial
// gradient goes to the boxes alone).
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

// What all three operations have: attributes, and the inputs from the first to the third.
struct Attributes {
  int64_t output_height;
  int64_t output_width;
  float spatial_scale;
};

template <typename Context>
tensorflow::Status GetAttributes(Context* context, Attributes* attributes) {
  TF_RETURN_IF_ERROR(context->GetAttr("output_height", &attributes->output_height));
  TF_RETURN_IF_ERROR(context->GetAttr("output_width", &attributes->output_width));
  TF_RETURN_IF_ERROR(context->GetAttr("spatial_scale", &attributes->spatial_scale));
  if (attributes->output_height <= 0 || attributes->output_width <= 0) {
    return InvalidArgument("output_size is (", attributes->output_height, ", ",
                           attributes->output_width, "), both must be positive");
  }
  if (!(attributes->spatial_scale > 0) || !std::isfinite(attributes->spatial_scale)) {
    return InvalidArgument("spatial_scale is ", attributes->spatial_scale,
                           ", must be positive and finite");
  }
  return tensorflow::OkStatus();
}

// Ranks of features, boxes and box_indices; gives the shape of the output.
tensorflow::Status InferOutput(InferenceContext* context, ShapeHandle* output) {
  Attributes attributes;
  TF_RETURN_IF_ERROR(GetAttributes(context, &attributes));
  ShapeHandle features, boxes, box_indices;
  DimensionHandle unused, num_boxes;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, &features));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 2, &boxes));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 1, &box_indices));
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(boxes, 1), 4, &unused));
  TF_RETURN_IF_ERROR(
      context->Merge(context->Dim(boxes, 0), context->Dim(box_indices, 0), &num_boxes));
  *output = context->MakeShape({num_boxes, context->MakeDim(attributes.output_height),
                                context->MakeDim(attributes.output_width),
                                context->Dim(features, 3)});
  return tensorflow::OkStatus();
}

tensorflow::Status InferForward(InferenceContext* context) {
  ShapeHandle output;
  TF_RETURN_IF_ERROR(InferOutput(context, &output));
  context->set_output(0, output);
  return tensorflow::OkStatus();
}

// The gradient to input `kInput` has its shape.
template <int kInput>
tensorflow::Status InferGradient(InferenceContext* context) {
  ShapeHandle output, upstream;
  TF_RETURN_IF_ERROR(InferOutput(context, &output));
  TF_RETURN_IF_ERROR(context->Merge(context->input(3), output, &upstream));
  context->set_output(0, context->input(kInput));
  return tensorflow::OkStatus();
}

// Macros, because REGISTER_OP takes a chain of calls and no function could add to it.
#define PRROI_REGISTER(NAME) \
  REGISTER_OP(NAME)                                  \
      .Attr("T: {half, bfloat16, float, double}")    \
      .Attr("U: {float, double}")                    \
      .Attr("output_height: int")                    \
      .Attr("output_width: int")                     \
      .Attr("spatial_scale: float")                  \
      .Input("features: T")                          \
      .Input("boxes: U")                             \
      .Input("box_indices: int32")

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
    .SetShapeFn(InferGradient<1>);
PRROI_REGISTER("PrRoiPoolGradFeatures")
    .Input("upstream: T")
    .Output("d_features: T")
    .SetShapeFn(InferGradient<0>);
#undef PRROI_REGISTER

// What the base class has checked and prepared for one call.
struct Call {
  Shape shape;
  const Tensor* features;
  const Tensor* boxes;
  const Tensor* box_indices;
  const Tensor* upstream;  // nullptr in the forward operation.
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

 private:
  tensorflow::Status Prepare(OpKernelContext* context, Call* call) const {
    call->features = &context->input(0);
    call->boxes = &context->input(1);
    call->box_indices = &context->input(2);
    call->upstream = context->num_inputs() > 3 ? &context->input(3) : nullptr;
    const TensorShape& features = call->features->shape();
    const TensorShape& boxes = call->boxes->shape();
    const TensorShape& indices = call->box_indices->shape();
    if (features.dims() != 4) {
      return InvalidArgument("features has shape ", features.DebugString(),
                             ", must be [images, height, width, channels]");
    }
    if (boxes.dims() != 2 || boxes.dim_size(1) != 4) {
      return InvalidArgument("boxes has shape ", boxes.DebugString(), ", must be [boxes, 4]");
    }
    if (indices.dims() != 1 || indices.dim_size(0) != boxes.dim_size(0)) {
      return InvalidArgument("box_indices has shape ", indices.DebugString(), ", must be [",
                             boxes.dim_size(0), "] as there are boxes");
    }
    call->shape = {features.dim_size(0),      features.dim_size(1),     features.dim_size(2),
                   features.dim_size(3),      boxes.dim_size(0),        attributes_.output_height,
                   attributes_.output_width, attributes_.spatial_scale};
    if (std::max(call->shape.height, call->shape.width) > INT32_MAX / 4 ||
        std::max(call->shape.output_height, call->shape.output_width) > INT32_MAX / 4) {
      return InvalidArgument("features of shape ", features.DebugString(), " and output_size (",
                             call->shape.output_height, ", ", call->shape.output_width,
                             ") are too large");
    }
    if (call->upstream && call->upstream->shape() != OutputShape(call->shape)) {
      return InvalidArgument("upstream has shape ", call->upstream->shape().DebugString(),
                             ", must be ", OutputShape(call->shape).DebugString());
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

template <typename U>
tensorflow::Status CheckValues(const Call& call) {
  const U* boxes = call.boxes->flat<U>().data();
  const int32_t* indices = call.box_indices->flat<int32_t>().data();
  for (int64_t n = 0; n < call.shape.num_boxes; ++n) {
    const U* box = boxes + 4 * n;
    if (!std::isfinite(box[0]) || !std::isfinite(box[1]) || !std::isfinite(box[2]) ||
        !std::isfinite(box[3])) {
      return InvalidArgument("boxes[", n, "] is (", box[0], ", ", box[1], ", ", box[2], ", ",
                             box[3], "), must be finite");
    }
    if (indices[n] < 0 || indices[n] >= call.shape.num_images) {
      return InvalidArgument("box_indices[", n, "] is ", indices[n], ", must be in [0, ",
                             call.shape.num_images, ")");
    }
  }
  return tensorflow::OkStatus();
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
    const BoxPlans<Real<Element>> plans(call.shape, call.boxes->flat<U>().data(),
                                        call.box_indices->flat<int32_t>().data(), parallel_for);
    RunPlanned(context, call, plans.data(), parallel_for);
  }

  virtual void RunPlanned(OpKernelContext* context, const Call& call,
                          const BoxPlan<Real<Element>>* plans,
                          const ParallelFor& parallel_for) = 0;
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
    Tensor* pooled = nullptr;
    OP_REQUIRES_OK(context,
                   context->allocate_output(0, this->OutputShape(call.shape), &pooled));
    if (pooled->NumElements() == 0) return;
    const Element* features = Data<T>(*call.features);
    Element* output = Data<T>(pooled);
    parallel_for(call.shape.num_boxes * call.shape.output_height, CostOfRow(call.shape),
                 [&](int64_t begin, int64_t end) {
                   Kernels<T>().forward(call.shape, plans, features, begin, end, output);
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
    const Element* features = Data<T>(*call.features);
    const Element* upstream = Data<T>(*call.upstream);
    std::vector<double> gradients(4 * call.shape.num_boxes);
    parallel_for(call.shape.num_boxes, 4 * call.shape.output_height * CostOfRow(call.shape),
                 [&](int64_t begin, int64_t end) {
                   Kernels<T>().box_gradient(call.shape, plans, features, upstream, begin, end,
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
    Tensor* d_features = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, call.features->shape(), &d_features));
    if (d_features->NumElements() == 0) return;
    const Shape& shape = call.shape;
    const BoxesByImage boxes(shape, call.box_indices->flat<int32_t>().data());
    const Element* upstream = Data<T>(*call.upstream);
    Element* output = Data<T>(d_features);
    // As if every box reached over half of the rows.
    const int64_t boxes_of_row = shape.num_boxes / (2 * shape.num_images) + 1;
    parallel_for(shape.num_images * shape.height, boxes_of_row * CostOfRow(shape),
                 [&](int64_t begin, int64_t end) {
                   Kernels<T>().feature_gradient(shape, plans, boxes.order.data(),
                                                 boxes.first_of_image.data(), upstream, begin,
                                                 end, output);
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

// All three operations on a GPU. Values of boxes and indices are not looked at: that would wait for
// the GPU. kernels_cuda.h says what becomes of bad ones.
template <Operation kOperation, typename T, typename U>
class CudaPoolOp : public PoolOpBase {
 public:
  using PoolOpBase::PoolOpBase;

 protected:
  void Run(OpKernelContext* context, const Call& call) override {
    constexpr int type = CudaType<T>::kNumber;
    constexpr int boxes_are_double = std::is_same<U, double>::value;
    const Shape& shape = call.shape;
    const void* features = call.features->data();
    const void* boxes = call.boxes->data();
    const int32_t* indices = call.box_indices->flat<int32_t>().data();
    const void* upstream = call.upstream ? call.upstream->data() : nullptr;
    void* stream = context->op_device_context()->stream()->platform_specific_handle().stream;

    TensorShape result_shape;
    int64_t workspace_bytes;
    if (kOperation == Operation::kForward) {
      result_shape = OutputShape(shape);
      workspace_bytes = PrRoiPoolCudaForwardWorkspace(&shape, type);
    } else if (kOperation == Operation::kGradBoxes) {
      result_shape = call.boxes->shape();
      workspace_bytes = PrRoiPoolCudaBoxGradientWorkspace(&shape, type);
    } else {
      result_shape = call.features->shape();
      workspace_bytes = PrRoiPoolCudaFeatureGradientWorkspace(&shape, type);
    }
    Tensor* result = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, result_shape, &result));
    if (result->NumElements() == 0) return;
    Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_UINT8,
                                                   TensorShape({workspace_bytes}), &workspace));
    int error;
    if (kOperation == Operation::kForward) {
      error = PrRoiPoolCudaForward(type, boxes_are_double, &shape, features, boxes, indices,
                                   workspace.data(), result->data(), stream);
    } else if (kOperation == Operation::kGradBoxes) {
      error = PrRoiPoolCudaBoxGradient(type, boxes_are_double, &shape, features, boxes, indices,
                                       upstream, workspace.data(), result->data(), stream);
    } else {
      error = PrRoiPoolCudaFeatureGradient(type, boxes_are_double, &shape, boxes, indices, upstream,
                                           workspace.data(), result->data(), stream);
    }
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
#define PRROI_REGISTER(T, U)                                                                  \
  PRROI_REGISTER_ON(DEVICE_CPU, "PrRoiPool", T, U, ForwardOp<T, U>)                           \
  PRROI_REGISTER_ON(DEVICE_CPU, "PrRoiPoolGradBoxes", T, U, GradBoxesOp<T, U>)                \
  PRROI_REGISTER_ON(DEVICE_CPU, "PrRoiPoolGradFeatures", T, U, GradFeaturesOp<T, U>)          \
  PRROI_REGISTER_CUDA("PrRoiPool", kForward, T, U)                                            \
  PRROI_REGISTER_CUDA("PrRoiPoolGradBoxes", kGradBoxes, T, U)                                 \
  PRROI_REGISTER_CUDA("PrRoiPoolGradFeatures", kGradFeatures, T, U)
#define PRROI_REGISTER_BOTH(T) PRROI_REGISTER(T, float) PRROI_REGISTER(T, double)
PRROI_REGISTER_BOTH(Eigen::half)
PRROI_REGISTER_BOTH(Eigen::bfloat16)
PRROI_REGISTER_BOTH(float)
PRROI_REGISTER_BOTH(double)

}  // namespace
}  // namespace prroi
