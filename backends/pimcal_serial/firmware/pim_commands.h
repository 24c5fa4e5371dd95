/* The types of the protocol and what each does. */
#ifndef PIM_COMMANDS_H
#define PIM_COMMANDS_H

#include <stdbool.h>
#include <stdint.h>

#include "pim_board.h"
#include "pim_frame.h"

enum pim_type {
    PIM_HELLO = 0x01,
    PIM_ECHO = 0x02,
    PIM_SINK = 0x03,
    PIM_PROGRAM = 0x10,
    PIM_READBACK = 0x11,
    PIM_MVM = 0x12,
    PIM_READ = 0x13,
    PIM_SELFTEST = 0x14,
    PIM_GET_TRIM = 0x15,
    PIM_SET_TRIM = 0x16,
    PIM_STATS = 0x17,
    PIM_BAUD = 0x18,
    PIM_RESET = 0x19,
    PIM_WRITE_BUFFER = 0x20,
    PIM_MVM_GATHER = 0x21,
    PIM_LOG = 0x70,
    PIM_BOOT = 0x71
};

typedef enum pim_status pim_handler(struct pim_board *board, const struct pim_request *request,
                                    struct pim_answer *answer);

/* Carries out a request, writing the answer's payload. */
pim_handler pim_command;

/* Whether a repetition of such a request must not be carried out. */
bool pim_answer_to_keep(uint8_t type);

/* The tile that a request names; it is PIM_OUT_OF_RANGE if there is no such tile. */
enum pim_status pim_find_tile(struct pim_board *board, const struct pim_request *request, struct pim_tile **tile);

/* The same, and PIM_NOT_PROGRAMMED if it lacks rows. */
enum pim_status pim_find_usable_tile(struct pim_board *board, const struct pim_request *request,
                                     struct pim_tile **tile);

/* pim_info.c */
pim_handler pim_hello, pim_read, pim_stats;
/* pim_weights.c */
pim_handler pim_program, pim_readback, pim_selftest, pim_get_trim, pim_set_trim;
/* pim_mvm.c */
pim_handler pim_mvm;
/* pim_buffer.c */
pim_handler pim_write_buffer, pim_mvm_gather;

#endif
