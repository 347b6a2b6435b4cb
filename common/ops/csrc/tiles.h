// Tensors, and the tiles that the scan and the causal convolution walk them in.
#pragma once

#include <cstdint>

extern "C" {

// Strides in elements, by batch, order, channel (or group), row and column of the grid, and state;
// data may be null for an optional argument. Must agree with _View in cpp.py.
struct View {
    float* data;
    int64_t b, k, c, h, l, n;
    float* at(int64_t batch, int64_t channel) const { return data + batch * b + channel * c; }
};
}

namespace {

constexpr int64_t TILE = 64;    // tokens; also the distance of saved states
constexpr int64_t COLUMN = 64;  // channels
constexpr int64_t PAD = 16;     // a group's channels are padded to a multiple, for every W

// Where the tokens of a tile are in a tensor, from its first element at the same batch and channel,
// if they lie evenly.
struct EvenRows {
    struct {
        int64_t step;
        int64_t operator[](int64_t token) const { return token * step; }
    } at;
    bool adjacent;  // each right after the one before
    explicit EvenRows(int64_t step) : at{step}, adjacent(step == 1) {}
};

}  // namespace
