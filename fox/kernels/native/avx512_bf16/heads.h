// Rows of tokens by heads: where they lie, 64 of them at a time, and which queries see which keys.

#pragma once

#include "pairs.h"

namespace fox {

struct Matrix {  // rows of one head
    const bf16* data;
    Index stride;
    const bf16* row(Index token) const { return data + token * stride; }
};

struct Shape {
    Index B, T, N, K, H;
    Index G() const { return N / K; }
    Index blocks() const { return (T + kBlock - 1) / kBlock; }
    Index padded() const { return blocks() * kBlock; }
};

struct Tensor4 {  // (B, heads, T, H); strides in numbers
    bf16* data;
    Index row_stride, head_stride, token_stride;
    bf16* head(Index row, Index head) const { return data + row * row_stride + head * head_stride; }
    Matrix matrix(Index row, Index number) const { return {head(row, number), token_stride}; }
};

// 64 keys of a head: in place, or a copy with zeros after the last token.
struct Keys {
    const bf16* data;
    Index stride;
};

inline Keys keys_of(const Matrix& matrix, Index first, Index tokens, Index H, bf16* scratch) {
    if (first + kBlock <= tokens) return {matrix.row(first), matrix.stride};
    std::memset(scratch, 0, kBlock * H * sizeof(bf16));
    for (Index r = 0; first + r < tokens; ++r) std::memcpy(scratch + r * H, matrix.row(first + r), H * sizeof(bf16));
    return {scratch, H};
}

// Which of 16 queries may see a key: those at or after it whose document begins at or before it.
struct Lanes {
    __m512i place, begins;
    __mmask16 see(Index key) const {
        const __m512i k = _mm512_set1_epi32(static_cast<int>(key));
        return _mm512_cmple_epi32_mask(begins, k) & _mm512_cmpge_epi32_mask(place, k);
    }
};

struct Queries {
    Lanes lanes[kPanel];
    bool all_see(Index first_key, Index last_key) const {
        for (const Lanes& some : lanes)
            if (some.see(first_key) != 0xffff || some.see(last_key) != 0xffff) return false;
        return true;
    }
};

// Queries past the last token look like its own: what they make is never written.
inline Queries queries_of(Index first, Index tokens, const std::int32_t* begins) {
    alignas(64) std::int32_t places[kBlock], starts[kBlock];
    for (Index i = 0; i < kBlock; ++i) {
        places[i] = static_cast<std::int32_t>(std::min(first + i, tokens - 1));
        starts[i] = begins[places[i]];
    }
    Queries made;
    for (Index z = 0; z < kPanel; ++z)
        made.lanes[z] = {_mm512_load_si512(places + z * kLanes), _mm512_load_si512(starts + z * kLanes)};
    return made;
}

// float [H][64] columns as bf16 rows [count][H], `stride` apart; each column is first multiplied by its factor.
inline void write_turned(const float* columns, const __m512 (&factor)[kPanel], Index H, Index count, bf16* out, Index stride) {
    alignas(64) Pair pairs[16 * 16], turned[16 * 16];
    for (Index z = 0; z < kPanel && z * kLanes < count; ++z)
        for (Index h = 0; h < H; h += 32) {
            for (Index i = 0; i < 16; ++i) {
                const float* at = columns + (h + 2 * i) * kBlock + z * kLanes;
                _mm512_store_si512(pairs + 16 * i, paired(narrowed(_mm512_mul_ps(_mm512_loadu_ps(at), factor[z])),
                                                          narrowed(_mm512_mul_ps(_mm512_loadu_ps(at + kBlock), factor[z]))));
            }
            transpose_16x16(pairs, 16, turned, 16, 16);
            const Index rows = std::min<Index>(16, count - z * kLanes);
            for (Index i = 0; i < rows; ++i)
                std::memcpy(out + (z * kLanes + i) * stride + h, turned + 16 * i, 32 * sizeof(bf16));
        }
}

// What a thread works in.
struct Desk {
    Buffer<Pair> query, weight_pair;
    Buffer<float> score, mixed;
    Buffer<bf16> weight, slope, key, value;
    explicit Desk(Index H)
        : query(make_buffer<Pair>(kBlock * H / 2)),
          weight_pair(make_buffer<Pair>(kBlock / 2 * kBlock)),
          score(make_buffer<float>(kBlock * std::max(kBlock, H))),
          mixed(make_buffer<float>(H * kBlock)),
          weight(make_buffer<bf16>(kBlock * kBlock)),
          slope(make_buffer<bf16>(kBlock * kBlock)),
          key(make_buffer<bf16>(kBlock * H)),
          value(make_buffer<bf16>(kBlock * H)) {}
};

inline Tensor4 tensor(void* data, const Index* strides) {
    return {static_cast<bf16*>(data), strides[0], strides[1], strides[2]};
}

}  // namespace fox
