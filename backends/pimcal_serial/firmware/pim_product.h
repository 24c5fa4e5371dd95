/* Products of several vectors with a part of one tile: what MVM and MVM_GATHER have in common. */
#ifndef PIM_PRODUCT_H
#define PIM_PRODUCT_H

#include "pim_board.h"
#include "pim_frame.h"

struct pim_product {
    const struct pim_tile *tile;
    struct pim_part part;
    uint8_t format; /* of the outputs */
    uint32_t step;
    uint32_t saturated;
    uint8_t *start; /* of the answer */
    uint8_t *next;
};

/* Begins a product on the tile that a request names, with the output format and step of its payload, which has at least
   eight bytes. */
enum pim_status pim_product_open(struct pim_product *product, struct pim_board *board,
                                 const struct pim_request *request);

/* Chooses the part: rows from first_row on, columns as the protocol has them (0: all from the first on). */
enum pim_status pim_product_choose(struct pim_product *product, uint16_t first_row, uint64_t rows,
                                   const uint8_t *columns);

/* Takes room for all results; an answer longer than max_payload is out of range. */
enum pim_status pim_product_reserve(struct pim_product *product, struct pim_answer *answer, uint64_t vectors);

/* Multiplies the vector in board->inputs. */
void pim_product_next(struct pim_product *product, struct pim_board *board);

/* Completes the answer. */
void pim_product_close(const struct pim_product *product);

#endif
