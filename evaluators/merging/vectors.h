// Vectors for generated kernels, in the vector types of GCC and Clang, and where a processor has
// AVX-512 in its masks.
//
// A kernel takes 32 elements at a time, first those of even index and then those of odd index, 16
// lanes each. So the two 16-bit elements that share 32 bits of memory part by a shift and a mask,
// and meet again in the same way. What a 16-bit type stores is held in 32 bits.
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512BW__) && defined(__AVX512DQ__)
#define WIDE
#include <immintrin.h>
#endif

constexpr int LANES = 16, STEP = 2 * LANES;
typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef int64_t W __attribute__((vector_size(4 * LANES)));
typedef double D __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));
typedef uint16_t H2 __attribute__((vector_size(4 * LANES)));
typedef uint8_t B2 __attribute__((vector_size(2 * LANES)));
typedef _Float16 E __attribute__((vector_size(2 * LANES)));
struct L { W even, odd; };  // lanes of even and of odd number, in 64 bits
#if defined(WIDE)
struct M { __mmask16 lanes; };
#else
struct M { I lanes; };  // a true lane is -1
#endif
struct bfloat16 { uint16_t bits; };
struct float16 { _Float16 value; };

// Less nothing, not plus: a negative zero stays one.
template <class V, class S> static inline V all(S x) { return (decltype(V{}[0] + 0))x - V{}; }
template <> inline L all<L>(int64_t x) { return {x - W{}, x - W{}}; }

// Integers of 64 bits.
#define BOTH(sign) \
  static inline L operator sign(L a, L b) { return {a.even sign b.even, a.odd sign b.odd}; }
BOTH(+) BOTH(-) BOTH(*) BOTH(&) BOTH(|) BOTH(^) BOTH(>>)
#undef BOTH
static inline L operator-(L x) { return {-x.even, -x.odd}; }
static inline L operator~(L x) { return {~x.even, ~x.odd}; }
// The product of the lower halves: all 64 bits.
static inline W wide(W a, W b) {
#if defined(WIDE)
  return (W)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}
static inline L wide(L a, L b) { return {wide(a.even, b.even), wide(a.odd, b.odd)}; }

template <class To, class From> static inline To cast(From x) { return __builtin_convertvector(x, To); }
template <> inline L cast<L>(I x) { return {((W)x << 32) >> 32, (W)x >> 32}; }
template <> inline I cast<I>(L x) {
#if defined(WIDE)
  return (I)_mm512_mask_shuffle_epi32((__m512i)x.even, 0xaaaa, (__m512i)x.odd, _MM_PERM_CCAA);
#else
  return (I)((x.even & 0xffffffff) | (x.odd << 32));
#endif
}
template <> inline F cast<F>(L x) {
  F y = {};
  for (int k = 0; k < LANES; k++) y[k] = (float)(k % 2 ? x.odd : x.even)[k / 2];
  return y;
}
template <> inline L cast<L>(F x) {
  L y = {};
  for (int k = 0; k < LANES; k++) (k % 2 ? y.odd : y.even)[k / 2] = (int64_t)x[k];
  return y;
}

// Masks.
#if defined(WIDE)
#define MASKS(sign) \
  static inline M operator sign(M a, M b) { return {(__mmask16)(a.lanes sign b.lanes)}; }
#define COMPARE(name, sign, floats, integers) \
  static inline M name(F a, F b) { return {_mm512_cmp_ps_mask((__m512)a, (__m512)b, floats)}; } \
  static inline M name(I a, I b) { return {_mm512_cmp_epi32_mask((__m512i)a, (__m512i)b, integers)}; }
static inline M operator~(M x) { return {(__mmask16)~x.lanes}; }
static inline M mask(bool x) { return {(__mmask16)(x ? 0xffff : 0)}; }
static inline I spread(M x) { return (I)_mm512_movm_epi32(x.lanes); }
static inline int count(M x) { return __builtin_popcount(x.lanes); }
static inline bool at(M x, int lane) { return x.lanes >> lane & 1; }
#else
#define MASKS(sign) static inline M operator sign(M a, M b) { return {a.lanes sign b.lanes}; }
#define COMPARE(name, sign, floats, integers) \
  static inline M name(F a, F b) { return {(I)(a sign b)}; } \
  static inline M name(I a, I b) { return {(I)(a sign b)}; }
static inline M operator~(M x) { return {~x.lanes}; }
static inline M mask(bool x) { return {all<I>(x ? -1 : 0)}; }
static inline I spread(M x) { return x.lanes; }
static inline bool at(M x, int lane) { return x.lanes[lane]; }
static inline int count(M x) {
  int n = 0;
  for (int lane = 0; lane < LANES; lane++) n -= x.lanes[lane];
  return n;
}
#endif
MASKS(&) MASKS(|) MASKS(^)
COMPARE(ge, >=, _CMP_GE_OQ, _MM_CMPINT_NLT) COMPARE(gt, >, _CMP_GT_OQ, _MM_CMPINT_NLE)
COMPARE(le, <=, _CMP_LE_OQ, _MM_CMPINT_LE) COMPARE(lt, <, _CMP_LT_OQ, _MM_CMPINT_LT)
COMPARE(eq, ==, _CMP_EQ_OQ, _MM_CMPINT_EQ) COMPARE(ne, !=, _CMP_NEQ_UQ, _MM_CMPINT_NE)
#undef MASKS
#undef COMPARE
#define COMPARE(name, sign) \
  static inline M name(L a, L b) { \
    return ne(cast<I>(L{(W)(a.even sign b.even), (W)(a.odd sign b.odd)}), I{}); \
  }
COMPARE(ge, >=) COMPARE(gt, >) COMPARE(le, <=) COMPARE(lt, <) COMPARE(eq, ==) COMPARE(ne, !=)
#undef COMPARE
static inline M eq(M a, M b) { return ~(a ^ b); }
static inline M ne(M a, M b) { return a ^ b; }

template <class V> static inline V choose(M mask, V a, V b);
#if defined(WIDE)
template <> inline F choose<F>(M mask, F a, F b) {
  return (F)_mm512_mask_blend_ps(mask.lanes, (__m512)b, (__m512)a);
}
template <> inline I choose<I>(M mask, I a, I b) {
  return (I)_mm512_mask_blend_epi32(mask.lanes, (__m512i)b, (__m512i)a);
}
#else
template <> inline F choose<F>(M mask, F a, F b) { return mask.lanes ? a : b; }
template <> inline I choose<I>(M mask, I a, I b) { return mask.lanes ? a : b; }
#endif
template <> inline L choose<L>(M mask, L a, L b) {
  L chosen = cast<L>(spread(mask));
  return {chosen.even ? a.even : b.even, chosen.odd ? a.odd : b.odd};
}

static inline F magnitude(F x) { return (F)((U)x & 0x7fffffffu); }
static inline I magnitude(I x) { return x < 0 ? -x : x; }
static inline L magnitude(L x) { return choose<L>(lt(x, all<L>((int64_t)0)), -x, x); }
static inline F with_sign(F x, F of) { return (F)(((U)x & 0x7fffffffu) | ((U)of & 0x80000000u)); }
// x times the 1 or -1 that has the sign of `by`.
static inline F turned(F x, F by) {
#if defined(WIDE)
  return (F)_mm512_ternarylogic_epi32((__m512i)x, (__m512i)by, _mm512_set1_epi32(1 << 31), 0x78);
#else
  return (F)((U)x ^ ((U)by & 0x80000000u));
#endif
}
static inline F inverse(F x) { return 1.0f / x; }
static inline F down(F x) {
#if defined(WIDE)
  return (F)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_floorf(x[lane]);
  return x;
#endif
}
template <class V> static inline V at_least(V x, V low) { return choose<V>(lt(x, low) | ne(low, low), low, x); }
template <class V> static inline V at_most(V x, V high) { return choose<V>(gt(x, high) | ne(high, high), high, x); }
static inline F fused(F c, F a, F b) {
#if defined(WIDE)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  for (int lane = 0; lane < LANES; lane++) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  return c;
#endif
}

// Round to nearest, ties to even; a NaN stays one.
static inline F bfloat16_rounded(F x) {
  U u = (U)x, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  return (F)choose<I>(ne(x, x), I{} + 0x7fc00000, (I)rounded);
}
static inline U bfloat16_bits(F x) { return (U)bfloat16_rounded(x) >> 16; }
static inline U float16_bits(F x) {
#if defined(WIDE)
  __m256i bits = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (U)_mm512_cvtepu16_epi32(bits);
#else
  return cast<U>((H)cast<E>(x));
#endif
}
static inline F float16_value(U bits) {
#if defined(WIDE)
  return (F)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)bits));
#else
  return cast<F>((E)cast<H>(bits));
#endif
}
static inline F float16_rounded(F x) { return float16_value(float16_bits(x)); }

// 32 elements as they lie in memory, or would lie if they had 16 bits at least.
template <class T> struct Pairs { U both = {}; };
template <> struct Pairs<float> { F even = {}, odd = {}; };
template <> struct Pairs<int32_t> { I even = {}, odd = {}; };

template <bool ODD> static inline U half(U both) { return ODD ? both >> 16 : both & 0xffffu; }
template <bool ODD> static inline F take(Pairs<bfloat16> p) {
  return (F)(ODD ? p.both & 0xffff0000u : p.both << 16);
}
template <bool ODD> static inline F take(Pairs<float16> p) { return float16_value(half<ODD>(p.both)); }
template <bool ODD> static inline I take(Pairs<int16_t> p) { return (I)(ODD ? p.both : p.both << 16) >> 16; }
template <bool ODD> static inline I take(Pairs<uint16_t> p) { return (I)half<ODD>(p.both); }
template <bool ODD> static inline I take(Pairs<uint8_t> p) { return (I)half<ODD>(p.both); }
template <bool ODD> static inline F take(Pairs<float> p) { return ODD ? p.odd : p.even; }
template <bool ODD> static inline I take(Pairs<int32_t> p) { return ODD ? p.odd : p.even; }

template <bool ODD> static inline void put(U& both, U bits) { both = ODD ? both | bits << 16 : bits; }
template <bool ODD> static inline void put(Pairs<bfloat16>& p, F x) {
  p.both = ODD ? p.both | (U)x : (U)x >> 16;  // it was rounded when it got this type
}
template <bool ODD> static inline void put(Pairs<float16>& p, F x) { put<ODD>(p.both, float16_bits(x)); }
template <bool ODD> static inline void put(Pairs<int16_t>& p, I x) { put<ODD>(p.both, (U)x & 0xffffu); }
template <bool ODD> static inline void put(Pairs<uint8_t>& p, I x) { put<ODD>(p.both, (U)x & 0xffu); }
template <bool ODD> static inline void put(Pairs<float>& p, F x) { (ODD ? p.odd : p.even) = x; }
template <bool ODD> static inline void put(Pairs<int32_t>& p, I x) { (ODD ? p.odd : p.even) = x; }

// What is known of the elements of even and of those of odd index.
template <class T> struct Both { T even, odd; };

// The index of each element.
template <bool ODD> static inline L places(int64_t first) {
  return {W{0, 4, 8, 12, 16, 20, 24, 28} + (first + ODD), W{2, 6, 10, 14, 18, 22, 26, 30} + (first + ODD)};
}

// Whether it is one of the last `left` elements.
template <bool ODD> static inline M there(int64_t left) {
  const I lanes = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return lt(lanes, all<I>(left - ODD));
}

// Memory is read and written whole, but for the last `left` elements of a block.
template <bool TAIL, class V> static inline V read(const void* from, int64_t left) {
  V x = {};
  memcpy(&x, from, TAIL ? left * (sizeof(V) / STEP) : sizeof(V));
  return x;
}
template <bool TAIL, class V> static inline void write(void* to, V x, int64_t left) {
  memcpy(to, &x, TAIL ? left * (sizeof(V) / STEP) : sizeof(V));
}
struct Floats { F low, high; };
static inline F pick(F a, F b, I lanes) {
#if defined(WIDE)
  return (F)_mm512_permutex2var_ps((__m512)a, (__m512i)lanes, (__m512)b);
#else
  F x = {};
  for (int k = 0; k < LANES; k++) x[k] = (lanes[k] < LANES ? a : b)[lanes[k] % LANES];
  return x;
#endif
}
template <bool TAIL, class T> static inline Pairs<T> load(const T* p, int64_t left) {
  return {read<TAIL, U>(p, left)};
}
template <bool TAIL> static inline Pairs<uint8_t> load(const uint8_t* p, int64_t left) {
#if defined(WIDE)
  return {(U)_mm512_cvtepu8_epi16((__m256i)read<TAIL, B2>(p, left))};
#else
  return {(U)cast<H2>(read<TAIL, B2>(p, left))};
#endif
}
template <bool TAIL> static inline Pairs<float> load(const float* p, int64_t left) {
  Floats x = read<TAIL, Floats>(p, left);
  const I even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return {pick(x.low, x.high, even), pick(x.low, x.high, even + 1)};
}
template <bool TAIL> static inline Pairs<int32_t> load(const int32_t* p, int64_t left) {
  const Pairs<float> x = load<TAIL>((const float*)p, left);
  return {(I)x.even, (I)x.odd};
}
template <bool TAIL, class T> static inline void store(T* p, Pairs<T> x, int64_t left) {
  write<TAIL>(p, x.both, left);
}
// What is long is written past the caches, which need not read it first; see `fence`.
template <bool TAIL> static inline void store(bfloat16* p, Pairs<bfloat16> x, int64_t left, bool past) {
#if defined(WIDE)
  if (!TAIL && past) return _mm512_stream_si512((__m512i*)p, (__m512i)x.both);
#endif
  write<TAIL>(p, x.both, left);
}
template <class T> static inline bool past_caches(const T* p, int64_t n) {
  return (uintptr_t)p % sizeof(U) == 0 && n >= 1 << 19;
}
// Ask memory for what a later step reads; processors themselves look ahead only in plain loops.
template <class T> static inline void ahead(const T* p) { __builtin_prefetch(p + 2048, 0, 2); }
static inline void fence() {
#if defined(WIDE)
  _mm_sfence();
#endif
}
template <bool TAIL> static inline void store(uint8_t* p, Pairs<uint8_t> x, int64_t left) {
  write<TAIL>(p, cast<B2>((H2)x.both), left);
}
template <bool TAIL> static inline void store(float* p, Pairs<float> x, int64_t left) {
  const I low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  write<TAIL>(p, Floats{pick(x.even, x.odd, low), pick(x.even, x.odd, low + 8)}, left);
}
template <bool TAIL> static inline void store(int32_t* p, Pairs<int32_t> x, int64_t left) {
  store<TAIL>((float*)p, Pairs<float>{(F)x.even, (F)x.odd}, left);
}

// Sums in float64, in two halves: vectors wider than a register do not stay in registers.
struct Total { D low, high; };
static inline double sum(Total x) {
  double total = 0;
  for (int lane = 0; lane < LANES / 2; lane++) total += x.low[lane] + x.high[lane];
  return total;
}
template <bool TAIL, bool ODD> static inline void add(Total& total, F x, int64_t left) {
  if (TAIL) x = choose<F>(there<ODD>(left), x, F{});
#if defined(WIDE)
  total.low += (D)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
  total.high += (D)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
#else
  for (int k = 0; k < LANES; k++) (k < LANES / 2 ? total.low : total.high)[k % (LANES / 2)] += x[k];
#endif
}

// Which elements are true, for a search.
struct Hits { M even, odd; };
template <bool TAIL, bool ODD> static inline void note(Hits& hits, M x, int64_t left) {
  if (TAIL) x = x & there<ODD>(left);
  (ODD ? hits.odd : hits.even) = x;
}
// How many elements there are up to the one that is the `rank`-th to be true.
static inline int behind(Hits hits, int64_t rank) {
  int k = 0;
  for (; rank > 0; k++) rank -= at(k % 2 ? hits.odd : hits.even, k / 2);
  return k;
}
