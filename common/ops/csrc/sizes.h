// What all plans need to divide a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void require_positive(std::initializer_list<int64_t> sizes) {
    if (std::min(sizes) < 1) throw std::invalid_argument("a size below 1");
}

}  // namespace
