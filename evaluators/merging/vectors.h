// Vectors of 16 lanes for generated kernels, in the vector types of GCC and Clang.
// What a 16-bit type stores is held in 32 bits; a true lane is -1.
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef int64_t L __attribute__((vector_size(8 * LANES)));
typedef double D __attribute__((vector_size(8 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));
typedef uint8_t B __attribute__((vector_size(LANES)));
typedef _Float16 E __attribute__((vector_size(2 * LANES)));
struct bfloat16 { uint16_t bits; };
struct float16 { _Float16 value; };

template <class To, class From> static inline To cast(From x) { return __builtin_convertvector(x, To); }
// Less nothing, not plus: a negative zero stays one.
template <class V, class S> static inline V all(S x) { return (decltype(V{}[0] + 0))x - V{}; }
template <class V> static inline V choose(I mask, V a, V b) { return mask ? a : b; }
template <> inline L choose<L>(I mask, L a, L b) { return cast<L>(mask) ? a : b; }
static inline L lanes() { return L{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

static inline F magnitude(F x) { return (F)((U)x & 0x7fffffffu); }
static inline I magnitude(I x) { return x < 0 ? -x : x; }
static inline L magnitude(L x) { return x < 0 ? -x : x; }
static inline F inverse(F x) { return 1.0f / x; }
template <class V> static inline V at_least(V x, V low) { return (x < low) | (low != low) ? low : x; }
template <class V> static inline V at_most(V x, V high) { return (x > high) | (high != high) ? high : x; }
static inline F fused(F c, F a, F b) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  for (int lane = 0; lane < LANES; lane++) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  return c;
#endif
}

static inline U widen(H x) {
#if defined(__AVX512F__)
  return (U)_mm512_cvtepu16_epi32((__m256i)x);
#else
  return cast<U>(x);
#endif
}
static inline H narrow(U x) {
#if defined(__AVX512F__)
  return (H)_mm512_cvtepi32_epi16((__m512i)x);
#else
  return cast<H>(x & 0xffffu);
#endif
}

// Round to nearest, ties to even; a NaN stays one.
static inline U bfloat16_bits(F x) {
  U u = (U)x, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (x == x) ? rounded : U{} + 0x7fc0u;
}
static inline F bfloat16_rounded(F x) { return (F)(bfloat16_bits(x) << 16); }
static inline E narrow16(F x) {
#if defined(__AVX512F__)
  return (E)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return cast<E>(x);
#endif
}
static inline F widen16(E x) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps((__m256i)x);
#else
  return cast<F>(x);
#endif
}
static inline U float16_bits(F x) { return widen((H)narrow16(x)); }
static inline F float16_rounded(F x) { return widen16(narrow16(x)); }

// Memory is read and written whole, but for the last `left` lanes of a block.
template <bool TAIL, class V> static inline V fetch(const void* from, int64_t left) {
  V x = {};
  memcpy(&x, from, TAIL ? left * (sizeof(V) / LANES) : sizeof(V));
  return x;
}
template <bool TAIL, class V> static inline void keep(void* to, V x, int64_t left) {
  memcpy(to, &x, TAIL ? left * (sizeof(V) / LANES) : sizeof(V));
}
template <bool TAIL> static inline F load(const float* p, int64_t left) { return fetch<TAIL, F>(p, left); }
template <bool TAIL> static inline F load(const bfloat16* p, int64_t left) {
  return (F)(widen(fetch<TAIL, H>(p, left)) << 16);
}
template <bool TAIL> static inline F load(const float16* p, int64_t left) {
  return widen16(fetch<TAIL, E>(p, left));
}
template <bool TAIL> static inline I load(const int16_t* p, int64_t left) {
  return ((I)widen(fetch<TAIL, H>(p, left)) << 16) >> 16;
}
template <bool TAIL> static inline I load(const uint8_t* p, int64_t left) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtepu8_epi32((__m128i)fetch<TAIL, B>(p, left));
#else
  return cast<I>(fetch<TAIL, B>(p, left));
#endif
}
template <bool TAIL> static inline void store(float* p, F x, int64_t left) { keep<TAIL>(p, x, left); }
template <bool TAIL> static inline void store(bfloat16* p, F x, int64_t left) {
  keep<TAIL>(p, narrow((U)x >> 16), left);  // it was rounded when it got this type
}
template <bool TAIL> static inline void store(float16* p, F x, int64_t left) {
  keep<TAIL>(p, narrow16(x), left);
}
template <bool TAIL> static inline void store(int16_t* p, I x, int64_t left) {
  keep<TAIL>(p, narrow((U)x), left);
}
template <bool TAIL> static inline void store(uint8_t* p, I x, int64_t left) {
#if defined(__AVX512F__)
  keep<TAIL>(p, (B)_mm512_cvtepi32_epi8((__m512i)x), left);
#else
  keep<TAIL>(p, cast<B>(x & 0xff), left);
#endif
}
// Sums in float64, in two halves: vectors wider than a register do not stay in registers.
typedef double D2 __attribute__((vector_size(4 * LANES)));
struct Total { D2 low, high; };
static inline double sum(Total x) {
  double total = 0;
  for (int lane = 0; lane < LANES / 2; lane++) total += x.low[lane] + x.high[lane];
  return total;
}
template <bool TAIL> static inline void add(Total& total, F x, int64_t left) {
  if (TAIL) for (int lane = left; lane < LANES; lane++) x[lane] = 0;
#if defined(__AVX512F__)
  total.low += (D2)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
  total.high += (D2)_mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)x, 1)));
#else
  D wide = cast<D>(x);
  D2 halves[2];
  memcpy(halves, &wide, sizeof(wide));
  total.low += halves[0];
  total.high += halves[1];
#endif
}
