// Arithmetic for which the CPU has no instruction and the compiler calls compiler-rt, and libm.
#include "expect.h"
#include <complex.h>
#include <math.h>

// volatile, lest the compiler works it all out itself.
static volatile unsigned long long million = 1000000;
static volatile double half = 0.5;
static volatile long double third_of = 3.0L;

int main(void) {
    unsigned __int128 big = (unsigned __int128)million * million * million * million * million * million;  // 10^36
    EXPECT(big / 1000000000000000000ull == million * million * million);
    EXPECT(big % 7 == 1);  // 10^36 = (10^6)^6, and 10^6 is 1 modulo 7
    __int128 negative = -(__int128)big;
    EXPECT(negative / (__int128)million * (__int128)million == negative);
    EXPECT(negative % 7 == -1);

    // long double is software arithmetic on aarch64 and riscv64.
    long double third = 1 / third_of;
    EXPECT(fabsl(third * 3 - 1) < 1e-18L);
    EXPECT((unsigned long long)(third * 3000000000000ll + half) == 1000000000000ull);

    EXPECT((double)big > 9.9e35 && (double)big < 1.1e36);
    EXPECT((unsigned __int128)(half * 4) == 2);

    double _Complex i = half * 2 * I;
    EXPECT(creal(i * i) == -1 && cimag(i * i) == 0);
    EXPECT(fabs(sin(half) * sin(half) + cos(half) * cos(half) - 1) < 1e-15);

    puts("128-bit integers, long double, complex numbers and libm agree");
}
