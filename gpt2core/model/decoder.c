/* GPT-2's blocks for a few new tokens on a CPU; decoder.py compiles this file for the machine that it runs on.

   A new token reads every weight once, so the memory decides the speed: weights are stored in the order in which they are
   read, as panels of PANEL outputs, [n_out / PANEL, n_in, PANEL]. A group of inputs has 32 bits: one float32, two
   bfloat16, or four int8, which are next to each other: [n_out / PANEL, n_in / group, PANEL, group]. The order in which
   the products of an output are added depends on neither the number of rows nor that of threads.

   A function without a parallel region of its own is called by all threads of one. Threads wait for each other after a
   product and after attention, and with more than FEW rows also after these have been prepared for a product.

   Shapes: N = B * T rows, T new tokens of each of B sequences, S tokens so far, C channels, H heads, D = C / H. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define ROWS 6 /* multiplied together: their sums fill the registers */
#define BROADCAST(word) (ints)_mm512_set1_epi32(word)
#else
#define LANES 8
#define ROWS 2
#define BROADCAST(word) (ints)_mm256_set1_epi32(word)
#endif
#define VECTORS 4 /* of a panel */
#define PANEL (VECTORS * LANES)
#define CHUNK (4 * ROWS) /* rows that use a panel while it is in the cache */
#define BLOCK 128        /* groups of a panel that all rows of a chunk use before the next ones; their sum is rounded less */
#define FEW 4            /* rows that each thread prepares for itself, which takes less time than waiting */
#define UNROLL _Pragma("GCC unroll 8")

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef union {
    float value;
    int32_t word;
    uint16_t bfloat16[2];
    uint8_t int8[4];
} Group;

enum Dtype { FLOAT32, BFLOAT16, INT8 };
enum Finish { STORE, ADD, GELU }; /* what is done with a product p: y = p, y = y + p, or y = gelu(p) */

typedef struct {
    const Group *weights;
    const float *scales;  /* [n_out]; int8 */
    const int32_t *sums;  /* [n_out], each of an output's weights; int8 */
    const float *bias;    /* [n_out] or NULL */
    long n_in, n_out;
} Linear;

typedef struct {
    const float *weight, *bias; /* [C] each */
    float eps;
} Norm;

typedef struct {
    Norm ln_1, ln_2;
    Linear c_attn, attn_proj, c_fc, mlp_proj;
} Block;

typedef struct { /* rows in the form that a product reads, of one thread or shared by all */
    Group *groups; /* [N, n_groups] */
    float *scales; /* [N]; int8: x = scale * (int8 - zero) */
    int32_t *zeros;
    float *row; /* [C], of a thread */
} Inputs;

/* The dtypes that this machine has the instructions for: bit n is set for number n of `Dtype`. */
int supported(void) {
    int dtypes = 1 << FLOAT32;
#ifdef __AVX512BF16__
    dtypes |= 1 << BFLOAT16;
#endif
#ifdef __AVX512VNNI__
    dtypes |= 1 << INT8;
#endif
    return dtypes;
}

int panel_outputs(void) { return PANEL; }

static inline long n_groups(long n_in, enum Dtype dtype) {
    long size = dtype == FLOAT32 ? 1 : dtype == BFLOAT16 ? 2 : 4;
    return (n_in + size - 1) / size;
}

/* -- Products ----------------------------------------------------------------------------------------------------- */

static inline ints add_float32(ints sum, ints weights, ints inputs) {
    return (ints)((floats)sum + (floats)weights * (floats)inputs);
}

#ifdef __AVX512BF16__
static inline ints add_bfloat16(ints sum, ints weights, ints inputs) {
    return (ints)_mm512_dpbf16_ps((__m512)sum, (__m512bh)inputs, (__m512bh)weights);
}
#endif

#ifdef __AVX512VNNI__
static inline ints add_int8(ints sum, ints weights, ints inputs) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weights);
}
#endif

#define total_multiply_float32(total, sum) (ints)((floats)total + (floats)sum)
#define total_multiply_bfloat16 total_multiply_float32
#define total_multiply_int8(total, sum) (total + sum)

/* sums[rows, PANEL] += inputs[rows, n] weights[n, PANEL]; `rows` is a constant wherever this is called. */
#define MULTIPLY(name, add)                                                                                           \
    static inline __attribute__((always_inline)) void name##_rows(                                                    \
        int rows, const Group *inputs, long stride, const Group *weights, long n, Group *sums) {                      \
        ints sum[ROWS][VECTORS] = {0};                                                                                \
        for (long k = 0; k < n; k++) {                                                                                \
            ints read[VECTORS];                                                                                       \
            UNROLL for (int j = 0; j < VECTORS; j++) read[j] = *(const ints *)(weights + k * PANEL + j * LANES);      \
            UNROLL for (int i = 0; i < rows; i++) {                                                                   \
                ints input = BROADCAST(inputs[i * stride + k].word);                                                  \
                UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = add(sum[i][j], read[j], input);                  \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int i = 0; i < rows; i++)                                                                         \
            UNROLL for (int j = 0; j < VECTORS; j++) {                                                                \
                ints *total = (ints *)(sums + i * PANEL + j * LANES);                                                 \
                *total = total_##name(*total, sum[i][j]);                                                             \
            }                                                                                                         \
    }                                                                                                                 \
    static void name(int rows, const Group *inputs, long stride, const Group *weights, long n, Group *sums) {         \
        switch (ROWS - rows) {                                                                                        \
        case 0: name##_rows(ROWS, inputs, stride, weights, n, sums); break;                                           \
        case 1: name##_rows(ROWS - 1, inputs, stride, weights, n, sums); break;                                       \
        case 2: name##_rows(ROWS - 2, inputs, stride, weights, n, sums); break;                                       \
        case 3: name##_rows(ROWS - 3, inputs, stride, weights, n, sums); break;                                       \
        case 4: name##_rows(ROWS - 4, inputs, stride, weights, n, sums); break;                                       \
        default: name##_rows(ROWS - 5, inputs, stride, weights, n, sums);                                             \
        }                                                                                                             \
    }

MULTIPLY(multiply_float32, add_float32)
#ifdef __AVX512BF16__
MULTIPLY(multiply_bfloat16, add_bfloat16)
#endif
#ifdef __AVX512VNNI__
MULTIPLY(multiply_int8, add_int8)
#endif

static void multiply(enum Dtype dtype, int rows, const Group *inputs, long stride, const Group *weights, long n,
                     Group *sums) {
    switch (dtype) {
#ifdef __AVX512BF16__
    case BFLOAT16: multiply_bfloat16(rows, inputs, stride, weights, n, sums); break;
#endif
#ifdef __AVX512VNNI__
    case INT8: multiply_int8(rows, inputs, stride, weights, n, sums); break;
#endif
    default: multiply_float32(rows, inputs, stride, weights, n, sums);
    }
}

/* Round a row x[n] to the nearest bfloat16, ties to even. */
static void round_to_bfloat16(const float *x, long n, uint16_t *rounded) {
    for (long k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, x + k, 4);
        rounded[k] = x[k] != x[k] ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* a NaN stays one */
    }
}

/* Round a row x[n] to 256 steps from its smallest to its largest value, of which one is 0. */
static void round_to_int8(const float *x, long n, uint8_t *rounded, float *scale, int32_t *zero) {
    const uint32_t exponent = 0x7f800000; /* all ones: infinite or NaN */
    uint32_t bits, is_finite = 1;
    float low = 0, high = 0;
    for (long k = 0; k < n; k++) {
        low = x[k] < low ? x[k] : low;
        high = x[k] > high ? x[k] : high;
        memcpy(&bits, x + k, 4);
        is_finite &= (bits & exponent) != exponent;
    }
    if (!is_finite) { /* all products become NaN */
        *scale = NAN, *zero = 0;
        memset(rounded, 0, n);
        return;
    }
    *scale = high - low > 1e-30f ? (high - low) / 255 : 1;
    *zero = (int32_t)(0.5f - low / *scale);
    float steps = 1 / *scale, shift = *zero + 0.5f;
    for (long k = 0; k < n; k++) {
        int32_t step = (int32_t)(x[k] * steps + shift);
        rounded[k] = step < 0 ? 0 : step > 255 ? 255 : step;
    }
}

static void normalize(const Norm *norm, const float *x, long C, float *y) {
    float mean = 0, variance = 0;
    for (long c = 0; c < C; c++) mean += x[c];
    mean /= C;
    for (long c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean);
    float scale = 1 / sqrtf(variance / C + norm->eps);
    for (long c = 0; c < C; c++) y[c] = (x[c] - mean) * scale * norm->weight[c] + norm->bias[c];
}

/* Prepare x[N, n_in], or its norm, as inputs: of all threads, or of each thread if the rows are few. */
static void prepare(enum Dtype dtype, const Norm *norm, const float *x, long n_in, long N, Inputs *inputs) {
    long groups = n_groups(n_in, dtype), threads = omp_get_num_threads(), number = omp_get_thread_num();
    long first = N <= FEW ? 0 : number * N / threads, end = N <= FEW ? N : (number + 1) * N / threads;
    for (long i = first; i < end; i++) {
        const float *values = x + i * n_in;
        Group *row = inputs->groups + i * groups;
        if (norm) {
            normalize(norm, values, n_in, inputs->row);
            values = inputs->row;
        }
        row[groups - 1].word = 0; /* its inputs beyond n_in are zeros */
        if (dtype == FLOAT32) memcpy(row, values, n_in * sizeof(float));
        if (dtype == BFLOAT16) round_to_bfloat16(values, n_in, row->bfloat16);
        if (dtype == INT8) round_to_int8(values, n_in, row->int8, inputs->scales + i, inputs->zeros + i);
    }
    if (N > FEW) {
#pragma omp barrier
    }
}

/* p[width] = the products of a row with a panel, and the bias. */
static void finish_sums(enum Dtype dtype, const Linear *linear, const Inputs *inputs, long row, long first, long width,
                        const Group *sums, float *p) {
    for (long j = 0; j < width; j++) {
        p[j] = sums[j].value;
        if (dtype == INT8) {
            int32_t sum = sums[j].word - inputs->zeros[row] * linear->sums[first + j];
            p[j] = sum * inputs->scales[row] * linear->scales[first + j];
        }
        p[j] += linear->bias ? linear->bias[first + j] : 0;
    }
}

/* e^x = 2^n e^r with a polynomial for |r| <= ln(2) / 2. The compiler computes it for all lanes at once, unlike expf. */
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    float n = rintf(x * 1.44269504f), r = x - n * 0.693147181f;
    float e = 1 + r * (1 + r * (0.5f + r * (0.166666667f + r * (0.0416666667f + r * (0.00833333333f + r * 0.00138888889f)))));
    Group power = {.word = ((int32_t)n + 127) << 23};
    return e * power.value;
}

/* gelu(x) = x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) */
static void gelu(float *x, long n) {
    for (long j = 0; j < n; j++) x[j] = x[j] / (1 + exponential(-1.5957691216f * (x[j] + 0.044715f * x[j] * x[j] * x[j])));
}

/* y[N, n_out] = finish(x[N, n_in] Wt + b), or of the norm of x */
static void apply(enum Dtype dtype, const Norm *norm, const Linear *linear, const float *x, long N, Inputs *inputs,
                  enum Finish finish, float *y) {
    long groups = n_groups(linear->n_in, dtype), n_out = linear->n_out;
    prepare(dtype, norm, x, linear->n_in, N, inputs);
#pragma omp for schedule(static)
    for (long first = 0; first < n_out; first += PANEL) {
        const Group *weights = linear->weights + first * groups;
        long width = n_out - first < PANEL ? n_out - first : PANEL;
        Group sums[CHUNK * PANEL];
        float p[PANEL];
        for (long start = 0; start < N; start += CHUNK) {
            long rows = N - start < CHUNK ? N - start : CHUNK;
            memset(sums, 0, sizeof sums);
            for (long k = 0; k < groups; k += BLOCK)
                for (long i = 0; i < rows; i += ROWS)
                    multiply(dtype, rows - i < ROWS ? rows - i : ROWS, inputs->groups + (start + i) * groups + k, groups,
                             weights + k * PANEL, groups - k < BLOCK ? groups - k : BLOCK, sums + i * PANEL);
            for (long i = 0; i < rows; i++) {
                float *out = y + (start + i) * n_out + first;
                finish_sums(dtype, linear, inputs, start + i, first, width, sums + i * PANEL, p);
                if (finish == GELU) gelu(p, width);
                if (finish == ADD)
                    for (long j = 0; j < width; j++) out[j] += p[j];
                else
                    memcpy(out, p, width * sizeof(float));
            }
        }
    }
}

static long in_lines(long n_bytes) { return (n_bytes + 63) / 64 * 64; } /* of the cache, which threads do not share */

/* Room for the inputs of products, in one block of memory: of each thread if the rows are few, else of all threads. */
static Inputs *allocate(long threads, long N, long n_in) {
    long shared = N > FEW, size = N * n_in * sizeof(Group), copies = shared ? 1 : threads;
    long head = in_lines(threads * sizeof(Inputs)), each = in_lines(size + 8 * N), row = in_lines(n_in * sizeof(float));
    Inputs *all = aligned_alloc(64, head + copies * each + threads * row);
    char *memory = (char *)all + head;
    for (long i = 0; all && i < threads; i++) {
        char *mine = memory + (shared ? 0 : i * each);
        all[i] = (Inputs){(Group *)mine, (float *)(mine + size), (int32_t *)(mine + size + 4 * N),
                          (float *)(memory + copies * each + i * row)};
    }
    return all;
}

/* y[N, n_out] = x[N, n_in] Wt + b; returns 0 if there is no memory. */
int run_linear(int threads, int dtype, const Linear *linear, const float *x, long N, float *y) {
    Inputs *inputs = allocate(threads, N, linear->n_in);
    if (!inputs) return 0;
#pragma omp parallel num_threads(threads)
    apply(dtype, NULL, linear, x, N, inputs + omp_get_thread_num(), STORE, y);
    free(inputs);
    return 1;
}

/* -- Blocks ------------------------------------------------------------------------------------------------------- */

/* The keys and values of a layer: [B, H, length of a sequence, D] each. */
typedef struct {
    float *keys, *values;
} Cache;

typedef struct {
    long B, T, past, H, D, cache_tokens; /* past: tokens in the cache before these; cache_tokens: room in it */
    const uint8_t *mask;                 /* [B, T, S], 1 where a query may look; NULL: causal */
} Shape;

/* One query q[D] over the keys and values of one head -> y[D]; scores[S] is overwritten. */
static void attend_to(const float *q, const float *keys, const float *values, const uint8_t *mask, long S, long D,
                      float *scores, float *y) {
    float largest = -INFINITY, sum = 0, scale = 1 / sqrtf(D);
    for (long s = 0; s < S; s++) {
        float score = 0;
        for (long d = 0; d < D; d++) score += q[d] * keys[s * D + d];
        scores[s] = mask && !mask[s] ? -1e30f : score * scale;
        largest = scores[s] > largest ? scores[s] : largest;
    }
    for (long s = 0; s < S; s++) scores[s] = exponential(scores[s] - largest);
    for (long s = 0; s < S; s++) sum += scores[s];
    for (long d = 0; d < D; d++) y[d] = 0;
    for (long s = 0; s < S; s++)
        for (long d = 0; d < D; d++) y[d] += scores[s] * values[s * D + d];
    for (long d = 0; d < D; d++) y[d] /= sum;
}

/* qkv[N, 3C] -> y[N, C]; the keys and values of the new tokens become part of the cache. */
static void attend(const Shape *shape, const Cache *cache, const float *qkv, float *scores, float *y) {
    long T = shape->T, H = shape->H, D = shape->D, C = H * D, S = shape->past + T;
#pragma omp for schedule(static)
    for (long head = 0; head < shape->B * H; head++) { /* of all sequences */
        long b = head / H, h = head % H;
        float *keys = cache->keys + head * shape->cache_tokens * D, *values = cache->values + head * shape->cache_tokens * D;
        for (long t = 0; t < T; t++) {
            const float *row = qkv + (b * T + t) * 3 * C + h * D;
            memcpy(keys + (shape->past + t) * D, row + C, D * sizeof(float));
            memcpy(values + (shape->past + t) * D, row + 2 * C, D * sizeof(float));
        }
        for (long t = 0; t < T; t++) {
            const uint8_t *mask = shape->mask ? shape->mask + (b * T + t) * S : NULL;
            attend_to(qkv + (b * T + t) * 3 * C + h * D, keys, values, mask, mask ? S : shape->past + t + 1, D,
                      scores + head * S, y + (b * T + t) * C + h * D);
        }
    }
}

/* x[N, C] -> x[N, C] by all blocks; returns 0 if there is no memory. */
int run_blocks(int threads, int dtype, const Block *blocks, long n_layer, const Shape *shape, const Cache *caches,
               float *x) {
    long N = shape->B * shape->T, C = shape->H * shape->D, S = shape->past + shape->T, hidden = blocks->c_fc.n_out;
    Inputs *all_inputs = allocate(threads, N, hidden > C ? hidden : C);
    float *qkv = malloc((N * (4 * C + hidden) + shape->B * shape->H * S) * sizeof(float));
    if (all_inputs && qkv) {
        float *attended = qkv + N * 3 * C, *wide = attended + N * C, *scores = wide + N * hidden;
#pragma omp parallel num_threads(threads)
        for (long i = 0; i < n_layer; i++) {
            const Block *block = blocks + i;
            Inputs *inputs = all_inputs + omp_get_thread_num();
            apply(dtype, &block->ln_1, &block->c_attn, x, N, inputs, STORE, qkv);
            attend(shape, caches + i, qkv, scores, attended);
            apply(dtype, NULL, &block->attn_proj, attended, N, inputs, ADD, x);
            apply(dtype, &block->ln_2, &block->c_fc, x, N, inputs, GELU, wide);
            apply(dtype, NULL, &block->mlp_proj, wide, N, inputs, ADD, x);
        }
    }
    int is_done = all_inputs && qkv;
    free(all_inputs);
    free(qkv);
    return is_done;
}
