// Causal grouped-query attention within documents, forward and backward, for processors with AVX-512 and its bf16 products.
//
// As FlashAttention-2 (Dao, arXiv 2307.08691) it keeps the logarithm of each query's sum in place of the scores and makes them
// again on the way back. Everything is done with 64 keys by 64 queries at a time, keys as rows and queries as columns, so that
// a query's maximum, sum and borders are lanes of a register and nothing is ever summed across lanes. Every output is written by one
// thread in a fixed order: the same threads give the same bits.
//
// B rows, T tokens, N query heads, K key/value heads, G = N/K query heads a key/value head, H head size.
// In this file bf16 is its 16 bits; a pair is two of them in 32 bits, the lower-numbered one in the lower half, as VDPBF16PS takes them.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace {

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

inline Index round_up(Index value, Index to) { return (value + to - 1) / to * to; }

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
void pack_along(const bf16* rows, Index stride, Index count, Index H, Pair* out) {
    for (Index row = 0; row < kBlock; row += 16)
        for (Index h = 0; h < H / 2; h += 16)
            transpose_16x16(reinterpret_cast<const Pair*>(rows + row * stride) + h, stride / 2, out + h * kBlock + row,
                            kBlock, std::clamp<Index>(count - row, 0, 16));
}

// Up to 64 rows of H numbers as pairs of neighbouring rows: out[32][H].
void pack_across(const bf16* rows, Index stride, Index count, Index H, Pair* out) {
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
void pack_turned(const bf16* rows, Index stride, Index tokens, Index H, Index padded, bf16* out) {
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
void add_product_of_width(Index H, const bf16* a, Index lda, const Pair* b, Index depth, Index rows, float* c) {
    Index h = 0;
    for (; h + 64 <= H; h += 64) add_product<4>(a, lda, b + h, H, depth, rows, c + h, H);
    if (h < H) add_product<2>(a, lda, b + h, H, depth, rows, c + h, H);
}

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

Keys keys_of(const Matrix& matrix, Index first, Index tokens, Index H, bf16* scratch) {
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
Queries queries_of(Index first, Index tokens, const std::int32_t* begins) {
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
void write_turned(const float* columns, const __m512 (&factor)[kPanel], Index H, Index count, bf16* out, Index stride) {
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

// One block of queries of one head against all the keys that they see.
void forward_block(const Shape& shape, const Matrix& q, const Matrix& k, const bf16* value_turned,
                   const std::int32_t* begins, Index block, float scale, bf16* out, Index out_stride, float* log_sum,
                   Desk& desk) {
    const Index H = shape.H, T = shape.T, first_query = block * kBlock, padded = shape.padded();
    const Index num_queries = std::min(kBlock, T - first_query);
    const Queries queries = queries_of(first_query, T, begins);
    const __m512 factor = _mm512_set1_ps(scale * kLog2E);
    pack_along(q.row(first_query), q.stride, num_queries, H, desk.query.get());
    float* mixed = desk.mixed.get();
    float* score = desk.score.get();
    Pair* weights = desk.weight_pair.get();
    std::memset(mixed, 0, H * kBlock * sizeof(float));
    __m512 most[kPanel], sum[kPanel];
    for (Index z = 0; z < kPanel; ++z) most[z] = _mm512_set1_ps(kNone), sum[z] = _mm512_setzero_ps();
    const Index first_block = begins[first_query] / kBlock;
    for (Index key_block = first_block; key_block <= block; ++key_block) {
        const Index first_key = key_block * kBlock;
        const Keys keys = keys_of(k, first_key, T, H, desk.key.get());
        const bool all_see = queries.all_see(first_key, first_key + kBlock - 1);
        __m512 highest[kPanel], kept[kPanel];
        for (Index z = 0; z < kPanel; ++z) highest[z] = most[z];
        for (Index row = 0; row < kBlock; row += 4) {
            __m512 tile[4][kPanel];
            clear(tile);
            multiply<4, kPanel>(keys.data + row * keys.stride, keys.stride, desk.query.get(), kBlock, H / 2, tile);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
                for (int z = 0; z < kPanel; ++z) {
                    __m512 scaled = _mm512_mul_ps(tile[r][z], factor);
                    if (!all_see)
                        scaled = _mm512_mask_blend_ps(queries.lanes[z].see(first_key + row + r), _mm512_set1_ps(kNone), scaled);
                    highest[z] = _mm512_max_ps(highest[z], scaled);
                    _mm512_store_ps(score + (row + r) * kBlock + z * kLanes, scaled);
                }
        }
        for (Index z = 0; z < kPanel; ++z) {
            kept[z] = exp2_of(_mm512_sub_ps(most[z], highest[z]));
            sum[z] = _mm512_mul_ps(sum[z], kept[z]);
            most[z] = highest[z];
        }
        for (Index row = 0; row < kBlock; row += 2)
            for (Index z = 0; z < kPanel; ++z) {
                const float* at = score + row * kBlock + z * kLanes;
                const __m512 one = exp2_of(_mm512_sub_ps(_mm512_load_ps(at), most[z]));
                const __m512 other = exp2_of(_mm512_sub_ps(_mm512_load_ps(at + kBlock), most[z]));
                sum[z] = _mm512_add_ps(sum[z], _mm512_add_ps(one, other));
                _mm512_store_si512(weights + row / 2 * kBlock + z * kLanes, paired(narrowed(one), narrowed(other)));
            }
        for (Index h = 0; h < H; h += 4) {
            __m512 tile[4][kPanel];
            float* at = mixed + h * kBlock;
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
                for (int z = 0; z < kPanel; ++z)
                    tile[r][z] = _mm512_mul_ps(_mm512_load_ps(at + r * kBlock + z * kLanes), kept[z]);
            multiply<4, kPanel>(value_turned + h * padded + first_key, padded, weights, kBlock, kBlock / 2, tile);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
                for (int z = 0; z < kPanel; ++z) _mm512_store_ps(at + r * kBlock + z * kLanes, tile[r][z]);
        }
    }
    __m512 share[kPanel];
    for (Index z = 0; z < kPanel; ++z) share[z] = _mm512_div_ps(_mm512_set1_ps(1.0f), sum[z]);
    write_turned(mixed, share, H, num_queries, out, out_stride);
    alignas(64) float made[kBlock];
    for (Index z = 0; z < kPanel; ++z) {
        alignas(64) float mosts[kLanes], sums[kLanes];
        _mm512_store_ps(mosts, most[z]);
        _mm512_store_ps(sums, sum[z]);
        for (Index i = 0; i < kLanes; ++i) made[z * kLanes + i] = mosts[i] + std::log2(sums[i]);
    }
    std::memcpy(log_sum, made, num_queries * sizeof(float));
}

// What all queries of one head become on the way back: packed blocks, and each query's two numbers.
struct PackedHead {
    Pair *query_along, *query_across, *gradient_along, *gradient_across;  // [blocks][32 H] each
    float *log_sum, *dot;                                                 // [padded] each
};

void pack_head(const Shape& shape, const Matrix& q, const Matrix& out, const Matrix& grad, const float* log_sum,
               const PackedHead& packed) {
    const Index H = shape.H, size = kBlock / 2 * H;
    for (Index block = 0; block < shape.blocks(); ++block) {
        const Index first = block * kBlock, count = std::min(kBlock, shape.T - first);
        pack_along(q.row(first), q.stride, count, H, packed.query_along + block * size);
        pack_across(q.row(first), q.stride, count, H, packed.query_across + block * size);
        pack_along(grad.row(first), grad.stride, count, H, packed.gradient_along + block * size);
        pack_across(grad.row(first), grad.stride, count, H, packed.gradient_across + block * size);
        for (Index i = 0; i < kBlock; ++i) {
            const bool there = i < count;
            // A query that is not there has the weights 2^(0 - a lot) = 0.
            packed.log_sum[first + i] = there ? log_sum[first + i] : -2 * kNone;
            __m512 sum = _mm512_setzero_ps();
            for (Index h = 0; there && h < H; h += kLanes) {
                const auto read = [&](const Matrix& matrix) {
                    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(matrix.row(first + i) + h)));
                };
                sum = _mm512_fmadd_ps(read(out), read(grad), sum);
            }
            packed.dot[first + i] = _mm512_reduce_add_ps(sum);
        }
    }
}

// One block of keys and one of queries on the way back. The gradients of keys and values are rows [64][H], those of the queries columns [H][64].
void backward_block(const Shape& shape, const Keys& keys, const Keys& values, const bf16* key_turned, Index first_key,
                    Index query_block, const std::int32_t* begins, const PackedHead& packed, float scale,
                    float* key_gradient, float* value_gradient, float* query_gradient, Desk& desk) {
    const Index H = shape.H, size = kBlock / 2 * H, first_query = query_block * kBlock;
    const Queries queries = queries_of(first_query, shape.T, begins);
    const bool all_see = queries.all_see(first_key, first_key + kBlock - 1);
    const __m512 factor = _mm512_set1_ps(scale * kLog2E), scales = _mm512_set1_ps(scale);
    const Pair* query = packed.query_along + query_block * size;
    const Pair* gradient = packed.gradient_along + query_block * size;
    bf16* weight = desk.weight.get();
    bf16* slope = desk.slope.get();
    Pair* slope_pair = desk.weight_pair.get();
    __m512 log_sum[kPanel], dot[kPanel];
    for (Index z = 0; z < kPanel; ++z) {
        log_sum[z] = _mm512_loadu_ps(packed.log_sum + first_query + z * kLanes);
        dot[z] = _mm512_loadu_ps(packed.dot + first_query + z * kLanes);
    }
    for (Index row = 0; row < kBlock; row += 4) {
        alignas(64) float weights[4][kBlock];
        __m512 tile[4][kPanel];
        clear(tile);
        multiply<4, kPanel>(keys.data + row * keys.stride, keys.stride, query, kBlock, H / 2, tile);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
            for (int z = 0; z < kPanel; ++z) {
                __m512 made = exp2_of(_mm512_fmsub_ps(tile[r][z], factor, log_sum[z]));
                if (!all_see) made = _mm512_maskz_mov_ps(queries.lanes[z].see(first_key + row + r), made);
                _mm512_store_ps(weights[r] + z * kLanes, made);
                _mm256_store_si256(reinterpret_cast<__m256i*>(weight + (row + r) * kBlock + z * kLanes), narrowed(made));
            }
        clear(tile);
        multiply<4, kPanel>(values.data + row * values.stride, values.stride, gradient, kBlock, H / 2, tile);
#pragma GCC unroll 2
        for (int r = 0; r < 4; r += 2)
#pragma GCC unroll 4
            for (int z = 0; z < kPanel; ++z) {
                const auto slope_of = [&](int of) {
                    const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(weights[of] + z * kLanes), scales);
                    const __m512 made = _mm512_mul_ps(scaled, _mm512_sub_ps(tile[of][z], dot[z]));
                    // Where nothing is seen it is 0, even if the query's own sum is no number.
                    return narrowed(all_see ? made : _mm512_maskz_mov_ps(queries.lanes[z].see(first_key + row + of), made));
                };
                const __m256i one = slope_of(r), other = slope_of(r + 1);
                _mm256_store_si256(reinterpret_cast<__m256i*>(slope + (row + r) * kBlock + z * kLanes), one);
                _mm256_store_si256(reinterpret_cast<__m256i*>(slope + (row + r + 1) * kBlock + z * kLanes), other);
                _mm512_store_si512(slope_pair + (row + r) / 2 * kBlock + z * kLanes, paired(one, other));
            }
    }
    add_product_of_width(H, weight, kBlock, packed.gradient_across + query_block * size, kBlock / 2, kBlock, value_gradient);
    add_product_of_width(H, slope, kBlock, packed.query_across + query_block * size, kBlock / 2, kBlock, key_gradient);
    add_product<kPanel>(key_turned + first_key, shape.padded(), slope_pair, kBlock, kBlock / 2, H, query_gradient, kBlock);
}

void write_rows(const float* rows, Index count, Index H, bf16* out, Index stride) {
    for (Index row = 0; row < count; ++row)
        for (Index h = 0; h < H; h += kLanes)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + row * stride + h),
                                narrowed(_mm512_loadu_ps(rows + row * H + h)));
}

// Into how many parts each head's keys are cut, so that every thread has as much to do.
Index parts_of(Index heads, Index most, Index threads) {
    Index parts = 1;
    while (parts < most && heads * parts % threads != 0 && heads * parts < 8 * threads) ++parts;
    return parts;
}

Tensor4 tensor(void* data, const Index* strides) {
    return {static_cast<bf16*>(data), strides[0], strides[1], strides[2]};
}

}  // namespace

extern "C" {

// shape: B, T, N, K, H. Strides are of rows, heads and tokens, in numbers; the numbers of a head lie side by side. H is a multiple of
// 32, all strides are even. begins: [B][T], the first token that each one may see, which never falls along a row.
// log_sum: [B][N][T], to base 2. Returns 0, or 1 where memory is short.
int fox_attend(const Index* dimensions, void* q_data, const Index* q_strides, void* k_data, const Index* k_strides,
               void* v_data, const Index* v_strides, const std::int32_t* begins, void* out_data,
               const Index* out_strides, float* log_sum, float scale, int threads) {
    const Shape shape{dimensions[0], dimensions[1], dimensions[2], dimensions[3], dimensions[4]};
    const Tensor4 q = tensor(q_data, q_strides), k = tensor(k_data, k_strides), v = tensor(v_data, v_strides);
    const Tensor4 out = tensor(out_data, out_strides);
    const Index head_size = shape.H * shape.padded(), blocks = shape.blocks();
    try {
        const auto turned = make_buffer<bf16>(shape.B * shape.K * head_size);
        std::unique_ptr<std::unique_ptr<Desk>[]> desks(new std::unique_ptr<Desk>[threads]);
        for (int i = 0; i < threads; ++i) desks[i] = std::make_unique<Desk>(shape.H);
#pragma omp parallel num_threads(threads)
        {
            Desk& desk = *desks[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
            for (Index i = 0; i < shape.B * shape.K; ++i) {
                const Matrix values = v.matrix(i / shape.K, i % shape.K);
                pack_turned(values.data, values.stride, shape.T, shape.H, shape.padded(), turned.get() + i * head_size);
            }
            // The longest blocks first. Heads that share keys and values lie side by side.
#pragma omp for schedule(dynamic)
            for (Index i = 0; i < shape.B * shape.N * blocks; ++i) {
                const Index block = blocks - 1 - i / (shape.B * shape.N), pair = i % (shape.B * shape.N);
                const Index row = pair / shape.N, head = pair % shape.N, kv_head = head / shape.G();
                forward_block(shape, q.matrix(row, head), k.matrix(row, kv_head),
                              turned.get() + (row * shape.K + kv_head) * head_size,
                              begins + row * shape.T, block, scale,
                              out.head(row, head) + block * kBlock * out.token_stride, out.token_stride,
                              log_sum + pair * shape.T + block * kBlock, desk);
            }
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// The gradients of queries, keys and values from that of the output; `out` and `log_sum` are fox_attend's.
int fox_attend_back(const Index* dimensions, void* q_data, const Index* q_strides, void* k_data, const Index* k_strides,
                    void* v_data, const Index* v_strides, const std::int32_t* begins, void* out_data,
                    const Index* out_strides, const float* log_sum, void* grad_data, const Index* grad_strides,
                    void* dq_data, const Index* dq_strides, void* dk_data, const Index* dk_strides, void* dv_data,
                    const Index* dv_strides, float scale, int threads) {
    const Shape shape{dimensions[0], dimensions[1], dimensions[2], dimensions[3], dimensions[4]};
    const Tensor4 q = tensor(q_data, q_strides), k = tensor(k_data, k_strides), v = tensor(v_data, v_strides);
    const Tensor4 out = tensor(out_data, out_strides), grad = tensor(grad_data, grad_strides);
    const Tensor4 dq = tensor(dq_data, dq_strides), dk = tensor(dk_data, dk_strides), dv = tensor(dv_data, dv_strides);
    const Index B = shape.B, N = shape.N, K = shape.K, H = shape.H, G = shape.G(), T = shape.T;
    const Index blocks = shape.blocks(), padded = shape.padded(), head_size = H * padded;
    const Index parts = parts_of(B * K, blocks, threads);
    try {
        const auto key_turned = make_buffer<bf16>(B * K * head_size);
        const auto packs = make_buffer<Pair>(4 * B * N * head_size / 2);
        const auto numbers = make_buffer<float>(2 * B * N * padded);
        const auto query_gradient = make_buffer<float>(parts * B * N * head_size);
        std::unique_ptr<std::unique_ptr<Desk>[]> desks(new std::unique_ptr<Desk>[threads]);
        for (int i = 0; i < threads; ++i) desks[i] = std::make_unique<Desk>(H);
        const auto packed = [&](Index i) {
            Pair* at = packs.get() + 4 * i * (head_size / 2);
            float* number = numbers.get() + 2 * i * padded;
            return PackedHead{at, at + head_size / 2, at + 2 * (head_size / 2), at + 3 * (head_size / 2), number, number + padded};
        };
#pragma omp parallel num_threads(threads)
        {
            Desk& desk = *desks[omp_get_thread_num()];
#pragma omp for schedule(dynamic) nowait
            for (Index i = 0; i < B * K; ++i) {
                const Matrix keys = k.matrix(i / K, i % K);
                pack_turned(keys.data, keys.stride, T, H, padded, key_turned.get() + i * head_size);
            }
#pragma omp for schedule(dynamic)
            for (Index i = 0; i < B * N; ++i) {
                const Index row = i / N, head = i % N;
                pack_head(shape, q.matrix(row, head), out.matrix(row, head), grad.matrix(row, head), log_sum + i * T, packed(i));
            }
#pragma omp for schedule(dynamic)
            for (Index i = 0; i < B * K * parts; ++i) {
                const Index pair = i / parts, part = i % parts, row = pair / K, kv_head = pair % K;
                const Matrix keys = k.matrix(row, kv_head), values = v.matrix(row, kv_head);
                const std::int32_t* row_begins = begins + row * T;
                float* mine = query_gradient.get() + part * B * N * head_size;
                std::memset(mine + (row * N + kv_head * G) * head_size, 0, G * head_size * sizeof(float));
                for (Index block = part; block < blocks; block += parts) {
                    const Index first_key = block * kBlock, count = std::min(kBlock, T - first_key);
                    const Keys some_keys = keys_of(keys, first_key, T, H, desk.key.get());
                    const Keys some_values = keys_of(values, first_key, T, H, desk.value.get());
                    float* key_gradient = desk.score.get();
                    float* value_gradient = desk.mixed.get();
                    std::memset(key_gradient, 0, kBlock * H * sizeof(float));
                    std::memset(value_gradient, 0, kBlock * H * sizeof(float));
                    for (Index g = 0; g < G; ++g) {
                        const Index head = row * N + kv_head * G + g;
                        for (Index query_block = block; query_block < blocks; ++query_block) {
                            if (row_begins[query_block * kBlock] >= first_key + kBlock) break;
                            backward_block(shape, some_keys, some_values, key_turned.get() + pair * head_size, first_key,
                                           query_block, row_begins, packed(head), scale, key_gradient, value_gradient,
                                           mine + head * head_size + query_block * kBlock * H, desk);
                        }
                    }
                    write_rows(key_gradient, count, H, dk.head(row, kv_head) + first_key * dk.token_stride, dk.token_stride);
                    write_rows(value_gradient, count, H, dv.head(row, kv_head) + first_key * dv.token_stride, dv.token_stride);
                }
            }
            const __m512 one = _mm512_set1_ps(1.0f), ones[kPanel] = {one, one, one, one};
#pragma omp for schedule(static)
            for (Index i = 0; i < B * N * blocks; ++i) {
                const Index head = i / blocks, block = i % blocks;
                float* sum = query_gradient.get() + head * head_size + block * kBlock * H;
                for (Index part = 1; part < parts; ++part)
                    for (Index at = 0; at < kBlock * H; at += kLanes)
                        _mm512_store_ps(sum + at, _mm512_add_ps(_mm512_load_ps(sum + at),
                                                                _mm512_load_ps(sum + part * B * N * head_size + at)));
                write_turned(sum, ones, H, std::min(kBlock, T - block * kBlock),
                             dq.head(head / N, head % N) + block * kBlock * dq.token_stride, dq.token_stride);
            }
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
}
