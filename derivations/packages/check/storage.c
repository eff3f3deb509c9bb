// Thread-local storage, threads, and what runs before main and after it.
#include "expect.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { THREADS = 8, ROUNDS = 10000 };

static _Thread_local int mine = 7;
static _Thread_local char zeroed[4096];
static atomic_long total;
static int constructed;

__attribute__((constructor)) static void construct(void) { constructed = 1; }
__attribute__((destructor)) static void destruct(void) { puts("the destructor ran"); }

static void *work(void *unused) {
    (void)unused;
    EXPECT(mine == 7 && zeroed[0] == 0 && zeroed[sizeof zeroed - 1] == 0);
    memset(zeroed, 1, sizeof zeroed);
    for (int round = 0; round < ROUNDS; round++) {
        mine++;
        atomic_fetch_add(&total, 1);
    }
    EXPECT(mine == 7 + ROUNDS);
    return &mine;
}

int main(void) {
    EXPECT(constructed);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) EXPECT(pthread_create(&threads[i], NULL, work, NULL) == 0);
    for (int i = 0; i < THREADS; i++) {
        void *theirs;
        EXPECT(pthread_join(threads[i], &theirs) == 0);
        EXPECT(theirs != &mine);
    }
    EXPECT(mine == 7 && total == (long)THREADS * ROUNDS);
    puts("every thread had its own storage");
}
