/* Frames: header, CRC-32 and COBS, received and sent byte by byte so that no encoded copy is needed. */
#ifndef PIM_FRAME_H
#define PIM_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pim_config.h"

enum {
    PIM_VERSION = 1,
    PIM_HEADER_BYTES = 8,
    PIM_CRC_BYTES = 4,
    PIM_FRAME_BYTES = PIM_HEADER_BYTES + PIM_MAX_PAYLOAD + PIM_CRC_BYTES,
    PIM_NO_TILE = 0xFFFF
};

enum pim_status {
    PIM_OK = 0,
    PIM_WRONG_VERSION = 1,
    PIM_UNKNOWN_TYPE = 2,
    PIM_BAD_LENGTH = 3,
    PIM_OUT_OF_RANGE = 4,
    PIM_BAD_VALUE = 5,
    PIM_NOT_PROGRAMMED = 6
};

struct pim_receiver {
    uint32_t crc;
    size_t size; /* bytes decoded; stops at one more than fit */
    uint8_t code; /* of the current COBS piece, 0 before the first */
    uint8_t left; /* bytes that this piece still lacks */
    uint8_t bytes[PIM_FRAME_BYTES];
};

enum pim_received { PIM_MORE, PIM_FRAME, PIM_FRAME_TOO_LONG, PIM_NO_FRAME };

struct pim_request {
    uint8_t version;
    uint8_t type;
    uint16_t sequence;
    uint16_t tile;
    uint32_t crc;
    const uint8_t *payload;
    size_t size;
};

struct pim_answer {
    bool kept;
    uint16_t sequence;
    uint32_t request_crc;
    size_t size; /* of the payload */
    uint8_t bytes[PIM_FRAME_BYTES];
};

void pim_receiver_clear(struct pim_receiver *receiver);

/* Takes one byte of the line. After anything but PIM_MORE the receiver is to be cleared before the next byte. */
enum pim_received pim_receive(struct pim_receiver *receiver, uint8_t byte);

/* Reads the header of a received frame. Of one that is too long, payload and CRC are not there. */
struct pim_request pim_parse(const struct pim_receiver *receiver);

/* Starts an answer without payload. */
void pim_answer_open(struct pim_answer *answer, const struct pim_request *request);

/* Lengthens the payload by size bytes and returns where they are; NULL if the longest payload has no room for them. */
uint8_t *pim_answer_extend(struct pim_answer *answer, size_t size);

/* Sets the status; an answer that is not OK loses its payload. Adds the CRC. */
void pim_answer_close(struct pim_answer *answer, enum pim_status status);

void pim_send(const struct pim_answer *answer);

#endif
