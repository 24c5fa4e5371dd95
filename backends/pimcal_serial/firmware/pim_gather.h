/* Loops over the input buffer: how MVM_GATHER names the patches of a convolution. */
#ifndef PIM_GATHER_H
#define PIM_GATHER_H

#include <stdbool.h>
#include <stdint.h>

enum { PIM_LOOPS = 3, PIM_LOOP_BYTES = 6 };

/* Nested loops, the slowest first, and where they stand. */
struct pim_loops {
    uint8_t depth;
    uint16_t count[PIM_LOOPS];
    int32_t stride[PIM_LOOPS];
    uint16_t index[PIM_LOOPS];
    int64_t offset; /* sum of index * stride */
};

/* Reads depth (at most PIM_LOOPS) loops as they are sent, standing at the start. */
struct pim_loops pim_loops_read(const uint8_t *bytes, uint8_t depth);

/* How many steps all loops make together. */
uint64_t pim_loops_total(const struct pim_loops *loops);

/* One step; behind the last it stands at the start again. */
void pim_loops_step(struct pim_loops *loops);

/* Whether base plus both loops' offsets never leaves 0 to size - 1. No count may be 0. */
bool pim_loops_inside(const struct pim_loops *rows, const struct pim_loops *positions, uint32_t base, uint32_t size);

#endif
