// The way back of attention: the gradients of queries, keys and values, from scores that are made again (forward.cpp).
//
// B rows, T tokens, N query heads, K key/value heads, G = N/K query heads a key/value head, H head size

#include <omp.h>

#include "heads.h"

namespace fox {
namespace {

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

}  // namespace

extern "C" {
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

}  // extern "C"

}  // namespace fox
