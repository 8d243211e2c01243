// Numbers of 16 bits in pairs, as VDPBF16PS multiplies them: how they are packed, and products of blocks of them.
//
// bf16 is a number's 16 bits. A pair is two of them in 32 bits, the lower-numbered one in the lower half.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace fox {

using bf16 = std::uint16_t;
using Pair = std::uint32_t;
using Index = std::int64_t;

constexpr Index kBlock = 64;             // keys, and queries, of a block
constexpr Index kLanes = 16;             // floats in a register
constexpr Index kPanel = kBlock / kLanes;  // registers that hold a row of a block
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNone = -1e30f;  // below every score; infinity less infinity would be no number

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> make_buffer(Index count) {
    const std::size_t bytes = (std::max<Index>(count, 1) * sizeof(T) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, bytes);
    if (!memory) throw std::bad_alloc();
    return Buffer<T>(static_cast<T*>(memory));
}

inline __m512bh as_pairs(__m512i value) { return reinterpret_cast<__m512bh>(value); }

inline __m512 widened(__m256i value) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(value), 16));
}

inline __m256i narrowed(__m512 value) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)); }

// Pairs of two rows, the first one's in the lower halves.
inline __m512i paired(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// 2^x by a polynomial of the fractional part (Taylor's, at most 0.5 away from a whole number: within 4e-6 of the truth). Of two
// numbers, VMAXPS takes the second one where one is no number: what is none stays none, so that a loss of it is seen.
inline __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(1.3333558e-3f);
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(9.6181291e-3f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.5504109e-2f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.4022651e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.9314718e-1f));
    sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

// 16 x 16 values of 32 bits: rows of `in` become columns of `out`.
inline void transpose_16x16(const Pair* in, Index in_stride, Pair* out, Index out_stride, Index rows) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = i < rows ? _mm512_loadu_si512(in + i * in_stride) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(out + i * out_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
        _mm512_storeu_si512(out + (4 + i) * out_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
        _mm512_storeu_si512(out + (8 + i) * out_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
        _mm512_storeu_si512(out + (12 + i) * out_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
    }
}

// Up to 64 rows of H numbers, `stride` apart, as pairs along the row: out[H/2][64]. Rows that are not there are zeros.
inline void pack_along(const bf16* rows, Index stride, Index count, Index H, Pair* out) {
    for (Index row = 0; row < kBlock; row += 16)
        for (Index h = 0; h < H / 2; h += 16)
            transpose_16x16(reinterpret_cast<const Pair*>(rows + row * stride) + h, stride / 2, out + h * kBlock + row,
                            kBlock, std::clamp<Index>(count - row, 0, 16));
}

// Up to 64 rows of H numbers as pairs of neighbouring rows: out[32][H].
inline void pack_across(const bf16* rows, Index stride, Index count, Index H, Pair* out) {
    for (Index row = 0; row < kBlock; row += 2)
        for (Index h = 0; h < H; h += 16) {
            const auto read = [&](Index r) {
                return r < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + r * stride + h))
                                 : _mm256_setzero_si256();
            };
            _mm512_storeu_si512(out + row / 2 * H + h, paired(read(row), read(row + 1)));
        }
}

// The whole of one head, `tokens` rows of H, as out[H][padded]: pairs of neighbouring tokens lie together.
inline void pack_turned(const bf16* rows, Index stride, Index tokens, Index H, Index padded, bf16* out) {
    alignas(64) Pair across[16 * 16];
    Pair* turned = reinterpret_cast<Pair*>(out);
    for (Index token = 0; token < padded; token += 32)
        for (Index h = 0; h < H; h += 16) {
            for (Index i = 0; i < 16; ++i) {
                const auto read = [&](Index r) {
                    return r < tokens ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + r * stride + h))
                                      : _mm256_setzero_si256();
                };
                _mm512_store_si512(across + 16 * i, paired(read(token + 2 * i), read(token + 2 * i + 1)));
            }
            transpose_16x16(across, 16, turned + h * (padded / 2) + token / 2, padded / 2, 16);
        }
}

// 16 Z columns of R rows: sum += a[R][2 depth] times b[depth][ldb] of pairs. The rows of `a` are lda numbers apart.
template <int R, int Z>
inline __attribute__((always_inline)) void multiply(const bf16* a, Index lda, const Pair* b, Index ldb, Index depth,
                                                    __m512 (&sum)[R][Z]) {
    for (Index p = 0; p < depth; ++p) {
        __m512bh column[Z];
#pragma GCC unroll 4
        for (int z = 0; z < Z; ++z) column[z] = as_pairs(_mm512_loadu_si512(b + p * ldb + z * kLanes));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Pair value;
            std::memcpy(&value, a + r * lda + 2 * p, sizeof value);
            const __m512bh row = as_pairs(_mm512_set1_epi32(static_cast<int>(value)));
#pragma GCC unroll 4
            for (int z = 0; z < Z; ++z) sum[r][z] = _mm512_dpbf16_ps(sum[r][z], row, column[z]);
        }
    }
}

template <int R, int Z>
inline __attribute__((always_inline)) void clear(__m512 (&sum)[R][Z]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int z = 0; z < Z; ++z) sum[r][z] = _mm512_setzero_ps();
}

// c[rows][.. 16 Z] += a times b, both as in `multiply`; `rows` is a multiple of 4.
template <int Z>
void add_product(const bf16* a, Index lda, const Pair* b, Index ldb, Index depth, Index rows, float* c, Index ldc) {
    for (Index row = 0; row < rows; row += 4) {
        __m512 sum[4][Z];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
            for (int z = 0; z < Z; ++z) sum[r][z] = _mm512_loadu_ps(c + (row + r) * ldc + z * kLanes);
        multiply<4, Z>(a + row * lda, lda, b, ldb, depth, sum);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
            for (int z = 0; z < Z; ++z) _mm512_storeu_ps(c + (row + r) * ldc + z * kLanes, sum[r][z]);
    }
}

// The same over all H columns, 64 at a time and then 32.
inline void add_product_of_width(Index H, const bf16* a, Index lda, const Pair* b, Index depth, Index rows, float* c) {
    Index h = 0;
    for (; h + 64 <= H; h += 64) add_product<4>(a, lda, b + h, H, depth, rows, c + h, H);
    if (h < H) add_product<2>(a, lda, b + h, H, depth, rows, c + h, H);
}

}  // namespace fox
