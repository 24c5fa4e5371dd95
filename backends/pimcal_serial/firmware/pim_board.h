/* The board: everything that it remembers, and its loop. */
#ifndef PIM_BOARD_H
#define PIM_BOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "pim_array.h"
#include "pim_frame.h"
#include "pim_replay.h"

struct pim_counters {
    uint32_t received;
    uint32_t dropped;
    uint32_t other_version;
    uint32_t replayed;
    uint32_t vectors;
    uint32_t weights;
    uint32_t sent;
};

struct pim_baud {
    uint32_t rate;
    uint32_t before; /* where to go back to while the new rate is on trial, else 0 */
    uint32_t switched_ms;
};

struct pim_board {
    uint32_t boot_id;
    uint32_t started_ms;
    uint32_t refused_version_ms;
    bool refused_version;
    bool restart_asked;
    uint32_t baud_asked; /* 0: none */
    struct pim_baud baud;
    struct pim_counters counters;
    struct pim_receiver receiver;
    struct pim_replay replay;
    struct pim_tile tiles[PIM_TILES];
    int8_t buffer[PIM_BUFFER_BYTES];
    int8_t inputs[PIM_ROWS];   /* of the product being computed */
    int32_t outputs[PIM_COLS];
};

/* Runs until the port says that it is to end. The board need not be initialised; it is too large for most stacks. */
void pim_board_run(struct pim_board *board);

#endif
