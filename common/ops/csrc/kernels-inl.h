// All that is compiled once per instruction set: instruction_sets.h includes this file, and no other
// *-inl.h, for each, with
//
//   INSTRUCTION_SET  the namespace that the code is in
//   W                channels in a vector register
//
// Without these, as when an editor reads it alone, a *-inl.h file is for the portable set.

#undef PRODUCTS_INL_H  // what several of the files include, they include anew for each set
#undef SELECTIVE_SCAN_INL_H
#undef TILES_INL_H
#undef VECTOR_INL_H

#include "depthwise_conv-inl.h"
#include "group_norm-inl.h"
#include "kernels.h"
#include "layer_norm-inl.h"
#include "mamba_mixer-inl.h"
#include "selective_scan-inl.h"
#include "vector-inl.h"

namespace {
namespace INSTRUCTION_SET {

constexpr Kernels kernels{W,
                          forward_task,
                          backward_task,
                          mixer_forward_task,
                          mixer_backward_task,
                          layer_norm_task,
                          group_norm_sums,
                          group_norm_normalise,
                          group_norm_gradient_sums,
                          group_norm_differentiate,
                          depthwise_conv_task,
                          depthwise_conv_gradient_task};

}  // namespace INSTRUCTION_SET
}  // namespace
