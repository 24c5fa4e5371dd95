/* The tiles: weights, which rows are there, column trims, and the products. */
#ifndef PIM_ARRAY_H
#define PIM_ARRAY_H

#include <stdbool.h>
#include <stdint.h>

#include "pim_config.h"

enum { PIM_GAIN_ONE = 16384 };

struct pim_tile {
    int8_t weights[PIM_ROWS][PIM_COLS];
    int16_t offset[PIM_COLS];
    uint16_t gain[PIM_COLS];
    uint8_t present[(PIM_ROWS + 7) / 8]; /* a bit for each row */
    uint16_t rows;
    uint16_t cols;
    uint16_t missing;
    uint32_t id; /* of its programming */
    bool started;
};

/* Rows that are driven, the others get 0, and columns that are read. */
struct pim_part {
    uint16_t first_row;
    uint16_t rows;
    uint16_t first_col;
    uint16_t cols;
};

bool pim_tile_usable(const struct pim_tile *tile);

/* Empties the tile for a matrix of rows x cols. */
void pim_tile_start(struct pim_tile *tile, uint16_t rows, uint16_t cols, uint32_t id);

/* Stores a row of tile->cols int8. */
void pim_tile_write_row(struct pim_tile *tile, uint16_t row, const uint8_t *weights);

/* The trimmed sums of part->cols columns for part->rows inputs. The part must lie in the matrix. */
void pim_tile_multiply(const struct pim_tile *tile, const struct pim_part *part, const int8_t *inputs,
                       int32_t *outputs);

/* Writes patterns through the whole memory of the tile and leaves it as it was. Returns whether all came back. */
bool pim_tile_memory_works(struct pim_tile *tile);

#endif
