#include "pim_array.h"

#include <string.h>

#include "pim_bytes.h"

bool pim_tile_usable(const struct pim_tile *tile) { return tile->started && tile->missing == 0; }

void pim_tile_start(struct pim_tile *tile, uint16_t rows, uint16_t cols, uint32_t id) {
    memset(tile->present, 0, sizeof tile->present);
    tile->rows = rows;
    tile->cols = cols;
    tile->missing = rows;
    tile->id = id;
    tile->started = true;
    for (uint16_t j = 0; j < cols; j++) {
        tile->offset[j] = 0;
        tile->gain[j] = PIM_GAIN_ONE;
    }
}

static void note_present(struct pim_tile *tile, uint16_t row) {
    const uint8_t bit = (uint8_t)(1u << (row % 8));
    if ((tile->present[row / 8] & bit) == 0) {
        tile->present[row / 8] |= bit;
        tile->missing--;
    }
}

void pim_tile_write_row(struct pim_tile *tile, uint16_t row, const uint8_t *weights) {
    for (uint16_t j = 0; j < tile->cols; j++) {
        tile->weights[row][j] = pim_get_i8(weights[j]);
    }
    note_present(tile, row);
}

static void add_row(const int8_t *weights, int32_t input, int32_t *sums, uint16_t cols) {
    for (uint16_t j = 0; j < cols; j++) {
        sums[j] += weights[j] * input;
    }
}

/* floor((sum * gain + 8192) / 16384) + offset; C's division rounds towards zero, hence the two cases. */
static int32_t trimmed(int32_t sum, uint16_t gain, int16_t offset) {
    const int64_t scaled = (int64_t)sum * gain + PIM_GAIN_ONE / 2;
    const int64_t floored = scaled >= 0 ? scaled / PIM_GAIN_ONE : -((PIM_GAIN_ONE - 1 - scaled) / PIM_GAIN_ONE);
    return (int32_t)(floored + offset);
}

void pim_tile_multiply(const struct pim_tile *tile, const struct pim_part *part, const int8_t *inputs,
                       int32_t *outputs) {
    memset(outputs, 0, part->cols * sizeof *outputs);
    for (uint16_t i = 0; i < part->rows; i++) {
        if (inputs[i] != 0) {
            add_row(tile->weights[part->first_row + i] + part->first_col, inputs[i], outputs, part->cols);
        }
    }
    for (uint16_t j = 0; j < part->cols; j++) {
        const int col = part->first_col + j;
        outputs[j] = trimmed(outputs[j], tile->gain[col], tile->offset[col]);
    }
}

static bool byte_works(volatile uint8_t *byte) {
    const uint8_t before = *byte;
    bool works = true;
    *byte = 0x55;
    works = works && *byte == 0x55;
    *byte = 0xAA;
    works = works && *byte == 0xAA;
    *byte = before;
    return works && *byte == before;
}

bool pim_tile_memory_works(struct pim_tile *tile) {
    volatile uint8_t *bytes = (volatile uint8_t *)tile->weights;
    bool works = true;
    for (uint32_t i = 0; i < sizeof tile->weights; i++) {
        works = byte_works(bytes + i) && works;
    }
    return works;
}
