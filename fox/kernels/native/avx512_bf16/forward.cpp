// Causal grouped-query attention within documents for processors with AVX-512 and its bf16 products.
//
// As FlashAttention-2 (Dao, arXiv 2307.08691) it keeps the logarithm of each query's sum in place of the scores and makes them
// again on the way back (backward.cpp). 64 keys meet 64 queries at a time, keys as rows and queries as columns, so that a query's
// maximum, sum and borders are lanes of a register and nothing is ever summed across lanes. Every output is written by one thread in
// a fixed order: the same threads give the same bits.
//
// B rows, T tokens, N query heads, K key/value heads, G = N/K query heads a key/value head, H head size

#include <omp.h>

#include <cmath>

#include "heads.h"

namespace fox {
namespace {

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

}  // extern "C"

}  // namespace fox
