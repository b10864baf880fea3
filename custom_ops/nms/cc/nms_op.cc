// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression of many groups of boxes as a TensorFlow operation.
//
// What comes out has a fixed size: nobody has to read back how many boxes were chosen before the
// next operation can be started.
#include <string>

#include "nms_cpu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/threadpool.h"

#ifdef NMS_CUDA
#include "nms_cuda.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/platform/stream_executor.h"
#endif

namespace nms {
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

tensorflow::Status InferShapes(InferenceContext* context) {
  int64_t max_output;
  TF_RETURN_IF_ERROR(context->GetAttr("max_output", &max_output));
  ShapeHandle boxes, scores, merged;
  DimensionHandle unused;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 3, &boxes));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 2, &scores));
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(boxes, 2), 4, &unused));
  TF_RETURN_IF_ERROR(context->Subshape(boxes, 0, 2, &boxes));
  TF_RETURN_IF_ERROR(context->Merge(boxes, scores, &merged));
  const DimensionHandle groups = context->Dim(merged, 0);
  context->set_output(0, context->MakeShape({groups, context->MakeDim(max_output)}));
  context->set_output(1, context->MakeShape({groups}));
  return tensorflow::OkStatus();
}

REGISTER_OP("GroupedNonMaxSuppression")
    .Attr("iou_threshold: float")
    .Attr("score_threshold: float")
    .Attr("max_output: int >= 1")
    .Input("boxes: float")
    .Input("scores: float")
    .Output("indices: int32")
    .Output("counts: int32")
    .SetShapeFn(InferShapes)
    .Doc(R"doc(
Chooses boxes of each group one after the other, in their order.

A box is chosen if its score is above the threshold and no chosen one of its group has an IoU with it
above the other threshold.

boxes: [G, N, 4], y1 x1 y2 x2.
scores: [G, N].
indices: [G, max_output], ascending; 0 behind the last.
counts: [G], how many there are.
)doc");

// Checks what both devices can.
class NmsOpBase : public OpKernel {
 public:
  explicit NmsOpBase(OpKernelConstruction* context) : OpKernel(context) {
    Problem& problem = attributes_;
    OP_REQUIRES_OK(context, context->GetAttr("iou_threshold", &problem.iou_threshold));
    OP_REQUIRES_OK(context, context->GetAttr("score_threshold", &problem.score_threshold));
    OP_REQUIRES_OK(context, context->GetAttr("max_output", &problem.max_output));
    OP_REQUIRES(context, problem.iou_threshold >= 0.0f && problem.iou_threshold <= 1.0f,
                InvalidArgument("iou_threshold is ", problem.iou_threshold,
                                ", must be between 0 and 1"));
  }

  void Compute(OpKernelContext* context) override {
    const TensorShape& boxes = context->input(0).shape();
    const TensorShape& scores = context->input(1).shape();
    OP_REQUIRES(context, boxes.dims() == 3 && boxes.dim_size(2) == 4,
                InvalidArgument("boxes has shape ", boxes.DebugString(),
                                ", must be [groups, boxes, 4]"));
    OP_REQUIRES(context,
                scores.dims() == 2 && scores.dim_size(0) == boxes.dim_size(0) &&
                    scores.dim_size(1) == boxes.dim_size(1),
                InvalidArgument("scores has shape ", scores.DebugString(), ", must be [",
                                boxes.dim_size(0), ", ", boxes.dim_size(1), "] as boxes has"));
    OP_REQUIRES(context, boxes.dim_size(1) <= INT32_MAX,
                InvalidArgument("boxes has shape ", boxes.DebugString(), ", too many of a group"));
    Problem problem = attributes_;
    problem.num_groups = boxes.dim_size(0);
    problem.num_boxes = boxes.dim_size(1);
    Tensor *indices = nullptr, *counts = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, TensorShape({problem.num_groups, problem.max_output}),
                                &indices));
    OP_REQUIRES_OK(context,
                   context->allocate_output(1, TensorShape({problem.num_groups}), &counts));
    if (problem.num_groups == 0) return;
    Run(context, problem, indices->flat<int32_t>().data(), counts->flat<int32_t>().data());
  }

 protected:
  virtual void Run(OpKernelContext* context, const Problem& problem, int32_t* indices,
                   int32_t* counts) = 0;

 private:
  Problem attributes_ = {};
};

class CpuNmsOp : public NmsOpBase {
 public:
  using NmsOpBase::NmsOpBase;

 protected:
  void Run(OpKernelContext* context, const Problem& problem, int32_t* indices,
           int32_t* counts) override {
    const float* boxes = context->input(0).flat<float>().data();
    const float* scores = context->input(1).flat<float>().data();
    // As if a quarter of all pairs were compared, four cycles each.
    const int64_t cost = problem.num_boxes * problem.num_boxes + problem.max_output + 1;
    auto* workers = context->device()->tensorflow_cpu_worker_threads()->workers;
    workers->ParallelFor(problem.num_groups, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        counts[i] =
            SuppressGroup(problem, boxes + 4 * i * problem.num_boxes,
                          scores + i * problem.num_boxes, indices + i * problem.max_output);
      }
    });
  }
};

REGISTER_KERNEL_BUILDER(Name("GroupedNonMaxSuppression").Device(tensorflow::DEVICE_CPU), CpuNmsOp);

#ifdef NMS_CUDA

class CudaNmsOp : public NmsOpBase {
 public:
  using NmsOpBase::NmsOpBase;

 protected:
  void Run(OpKernelContext* context, const Problem& problem, int32_t* indices,
           int32_t* counts) override {
    OP_REQUIRES(context, problem.num_boxes <= kNmsCudaMaxBoxes,
                InvalidArgument("a group has ", problem.num_boxes, " boxes, at most ",
                                static_cast<int>(kNmsCudaMaxBoxes), " are possible on a GPU"));
    Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_UINT8,
                                                   TensorShape({NmsCudaWorkspace(&problem)}),
                                                   &workspace));
    void* stream = context->op_device_context()->stream()->platform_specific_handle().stream;
    const int error = NmsCuda(&problem, context->input(0).flat<float>().data(),
                              context->input(1).flat<float>().data(), workspace.data(), indices,
                              counts, stream);
    OP_REQUIRES(context, error == 0,
                tensorflow::errors::Internal(name(), ": CUDA says ", NmsCudaErrorString(error)));
  }
};

REGISTER_KERNEL_BUILDER(Name("GroupedNonMaxSuppression").Device(tensorflow::DEVICE_GPU), CudaNmsOp);

#endif  // NMS_CUDA

}  // namespace
}  // namespace nms
