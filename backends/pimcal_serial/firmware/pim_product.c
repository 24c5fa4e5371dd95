#include "pim_product.h"

#include "pim_bytes.h"
#include "pim_commands.h"
#include "pim_output.h"

enum { SATURATED_BYTES = 4 };

enum pim_status pim_product_open(struct pim_product *product, struct pim_board *board,
                                 const struct pim_request *request) {
    struct pim_tile *tile;
    const enum pim_status status = pim_find_usable_tile(board, request, &tile);
    if (status != PIM_OK) {
        return status;
    }
    *product = (struct pim_product){
        .tile = tile,
        .format = request->payload[1],
        .step = pim_get_u32(request->payload + 4),
    };
    const bool allowed = product->format < PIM_OUTPUT_FORMATS && pim_output_step_allowed(product->step);
    return allowed ? PIM_OK : PIM_OUT_OF_RANGE;
}

enum pim_status pim_product_choose(struct pim_product *product, uint16_t first_row, uint64_t rows,
                                   const uint8_t *columns) {
    const struct pim_tile *tile = product->tile;
    const uint16_t first_col = pim_get_u16(columns);
    const uint16_t cols = pim_get_u16(columns + 2);
    if (first_row >= tile->rows || rows == 0 || rows > (uint64_t)(tile->rows - first_row)) {
        return PIM_OUT_OF_RANGE;
    }
    if (first_col >= tile->cols || cols > tile->cols - first_col) {
        return PIM_OUT_OF_RANGE;
    }
    product->part = (struct pim_part){
        .first_row = first_row,
        .rows = (uint16_t)rows,
        .first_col = first_col,
        .cols = cols != 0 ? cols : (uint16_t)(tile->cols - first_col),
    };
    return PIM_OK;
}

enum pim_status pim_product_reserve(struct pim_product *product, struct pim_answer *answer, uint64_t vectors) {
    if (vectors > PIM_MAX_PAYLOAD) {
        return PIM_OUT_OF_RANGE;
    }
    const size_t vector = pim_output_size(product->format, product->part.cols);
    product->start = pim_answer_extend(answer, SATURATED_BYTES + (size_t)vectors * vector);
    if (product->start == NULL) {
        return PIM_OUT_OF_RANGE;
    }
    product->next = product->start + SATURATED_BYTES;
    return PIM_OK;
}

void pim_product_next(struct pim_product *product, struct pim_board *board) {
    const uint16_t cols = product->part.cols;
    pim_tile_multiply(product->tile, &product->part, board->inputs, board->outputs);
    product->saturated += pim_output_write(product->format, product->step, board->outputs, cols, product->next);
    product->next += pim_output_size(product->format, cols);
    board->counters.vectors++;
}

void pim_product_close(const struct pim_product *product) { pim_put_u32(product->start, product->saturated); }
