#include "pim_gather.h"

#include <string.h>

#include "pim_bytes.h"

struct pim_loops pim_loops_read(const uint8_t *bytes, uint8_t depth) {
    struct pim_loops loops;
    memset(&loops, 0, sizeof loops);
    loops.depth = depth;
    for (uint8_t d = 0; d < depth; d++) {
        loops.count[d] = pim_get_u16(bytes + PIM_LOOP_BYTES * d);
        loops.stride[d] = pim_get_i32(bytes + PIM_LOOP_BYTES * d + 2);
    }
    return loops;
}

uint64_t pim_loops_total(const struct pim_loops *loops) {
    uint64_t total = 1;
    for (uint8_t d = 0; d < loops->depth; d++) {
        total *= loops->count[d];
    }
    return total;
}

void pim_loops_step(struct pim_loops *loops) {
    for (uint8_t d = loops->depth; d-- > 0;) {
        if (loops->index[d] + 1 < loops->count[d]) {
            loops->index[d]++;
            loops->offset += loops->stride[d];
            return;
        }
        loops->offset -= (int64_t)loops->index[d] * loops->stride[d];
        loops->index[d] = 0;
    }
}

/* Each loop reaches its extremes independently of the others, so the sums of extremes are reached, too. */
static void add_extremes(const struct pim_loops *loops, int64_t *lowest, int64_t *highest) {
    for (uint8_t d = 0; d < loops->depth; d++) {
        const int64_t last = (int64_t)(loops->count[d] - 1) * loops->stride[d];
        *lowest += last < 0 ? last : 0;
        *highest += last > 0 ? last : 0;
    }
}

bool pim_loops_inside(const struct pim_loops *rows, const struct pim_loops *positions, uint32_t base, uint32_t size) {
    int64_t lowest = base;
    int64_t highest = base;
    add_extremes(rows, &lowest, &highest);
    add_extremes(positions, &lowest, &highest);
    return lowest >= 0 && highest < size;
}
