/* rand.h against rand() itself, with every kind of state that glibc has. */
#include "libc_rand.h"

#include "check.h"

static void predicts_and_leaves_alone(const char *kind) {
    fb_rand before, after;
    fb_rand_draws draws;
    int32_t predicted[100];
    rand();
    fb_rand_get(&before);
    fb_rand_get(&after);
    CHECK(fb_rand_same(&before, &after), "%s: looking at it changed it", kind);

    fb_rand_open(&draws, &after);
    for (int i = 0; i < 100; i++) predicted[i] = fb_rand_next(&draws);
    fb_rand_close(&draws);
    CHECK(!fb_rand_same(&before, &after), "%s: drawing from the copy did not change it", kind);

    for (int i = 0; i < 100; i++) {
        const int drawn = rand();
        CHECK(drawn == predicted[i], "%s: draw %d is %d, and %d was predicted", kind, i, drawn, predicted[i]);
    }
    fb_rand now;
    fb_rand_get(&now);
    CHECK(fb_rand_same(&now, &after), "%s: the copy is not where rand() is", kind);

    const int next = rand();
    fb_rand_set(&after);
    CHECK(rand() == next, "%s: rand() does not go on from where the copy is", kind);
    fb_rand_set(&before);
    CHECK(rand() == predicted[0], "%s: rand() does not go back to where the copy is", kind);
}

/* A shuffle of n elements takes n - 1 draws, and puts draw i % (i + 1) in its place. */
static void shuffle_is_libstdcxxs(void) {
    /* g++ 12.2: srand(1); std::random_shuffle of 0..9. */
    static const uint32_t expected[10] = {4, 3, 7, 8, 0, 5, 2, 1, 6, 9};
    uint32_t order[10];
    fb_rand copy, now;
    for (uint32_t i = 0; i < 10; i++) order[i] = i;
    srand(1);
    fb_rand_get(&copy);
    fb_rand_shuffle(order, 10, &copy);
    for (int i = 0; i < 10; i++) CHECK(order[i] == expected[i], "element %d is %u", i, order[i]);
    for (int i = 0; i < 9; i++) rand();
    fb_rand_get(&now);
    CHECK(fb_rand_same(&now, &copy), "it did not take nine draws");

    fb_rand_shuffle(order, 1, &copy);
    fb_rand_shuffle(order, 0, &copy);
    CHECK(fb_rand_same(&now, &copy), "nothing to shuffle took a draw");
}

int main(void) {
    static const size_t sizes[] = {8, 32, 64, 128, 256};
    predicts_and_leaves_alone("as it is when a process begins");
    shuffle_is_libstdcxxs();
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        _Alignas(int32_t) char state[256];
        char name[32];
        snprintf(name, sizeof name, "%zu bytes", sizes[i]);
        char *old = initstate(7, state, sizes[i]);
        predicts_and_leaves_alone(name);
        setstate(old);
    }
    return 0;
}
