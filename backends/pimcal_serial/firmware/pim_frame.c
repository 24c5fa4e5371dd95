#include "pim_frame.h"

#include "pim_bytes.h"
#include "pim_port.h"

static const uint32_t CRC_START = 0xFFFFFFFF;
static const uint32_t CRC_RESIDUE = 0xDEBB20E3; /* what stays after intact data and its own CRC */

/* CRC-32, reflected polynomial 0xEDB88320, a nibble at a time: the table of 16 words suits a small flash. */
static uint32_t crc_add(uint32_t crc, uint8_t byte) {
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    crc ^= byte;
    crc = (crc >> 4) ^ table[crc & 15];
    return (crc >> 4) ^ table[crc & 15];
}

void pim_receiver_clear(struct pim_receiver *receiver) {
    receiver->crc = CRC_START;
    receiver->size = 0;
    receiver->code = 0;
    receiver->left = 0;
}

static void decoded(struct pim_receiver *receiver, uint8_t byte) {
    receiver->crc = crc_add(receiver->crc, byte);
    if (receiver->size < PIM_FRAME_BYTES) {
        receiver->bytes[receiver->size] = byte;
    }
    if (receiver->size <= PIM_FRAME_BYTES) {
        receiver->size++;
    }
}

static void next_piece(struct pim_receiver *receiver, uint8_t code) {
    const bool ended_with_zero = receiver->code != 0 && receiver->code != 0xFF;
    if (ended_with_zero) {
        decoded(receiver, 0);
    }
    receiver->code = code;
    receiver->left = (uint8_t)(code - 1);
}

static enum pim_received judge(const struct pim_receiver *receiver) {
    if (receiver->code == 0) {
        return PIM_MORE;
    }
    if (receiver->left > 0 || receiver->size < PIM_HEADER_BYTES + PIM_CRC_BYTES || receiver->crc != CRC_RESIDUE) {
        return PIM_NO_FRAME;
    }
    return receiver->size > PIM_FRAME_BYTES ? PIM_FRAME_TOO_LONG : PIM_FRAME;
}

enum pim_received pim_receive(struct pim_receiver *receiver, uint8_t byte) {
    if (byte == 0) {
        return judge(receiver);
    }
    if (receiver->left == 0) {
        next_piece(receiver, byte);
    } else {
        receiver->left--;
        decoded(receiver, byte);
    }
    return PIM_MORE;
}

struct pim_request pim_parse(const struct pim_receiver *receiver) {
    const uint8_t *bytes = receiver->bytes;
    struct pim_request request = {
        .version = bytes[0],
        .type = bytes[1],
        .sequence = pim_get_u16(bytes + 2),
        .tile = pim_get_u16(bytes + 4),
    };
    if (receiver->size <= PIM_FRAME_BYTES) {
        request.payload = bytes + PIM_HEADER_BYTES;
        request.size = receiver->size - PIM_HEADER_BYTES - PIM_CRC_BYTES;
        request.crc = pim_get_u32(request.payload + request.size);
    }
    return request;
}

void pim_answer_open(struct pim_answer *answer, const struct pim_request *request) {
    answer->kept = false;
    answer->sequence = request->sequence;
    answer->request_crc = request->crc;
    answer->size = 0;
    answer->bytes[0] = PIM_VERSION;
    answer->bytes[1] = (uint8_t)(request->type | 0x80);
    pim_put_u16(answer->bytes + 2, request->sequence);
    pim_put_u16(answer->bytes + 4, request->tile);
    pim_put_u16(answer->bytes + 6, 0);
}

uint8_t *pim_answer_extend(struct pim_answer *answer, size_t size) {
    uint8_t *at = answer->bytes + PIM_HEADER_BYTES + answer->size;
    if (size > PIM_MAX_PAYLOAD - answer->size) {
        return NULL;
    }
    answer->size += size;
    return at;
}

void pim_answer_close(struct pim_answer *answer, enum pim_status status) {
    uint32_t crc = CRC_START;
    if (status != PIM_OK) {
        answer->size = 0;
    }
    answer->bytes[6] = (uint8_t)status;
    for (size_t i = 0; i < PIM_HEADER_BYTES + answer->size; i++) {
        crc = crc_add(crc, answer->bytes[i]);
    }
    pim_put_u32(answer->bytes + PIM_HEADER_BYTES + answer->size, crc ^ 0xFFFFFFFF);
}

static size_t bytes_before_zero(const uint8_t *bytes, size_t size) {
    size_t count = 0;
    while (count < size && count < 254 && bytes[count] != 0) {
        count++;
    }
    return count;
}

/* Sends one COBS piece and returns how many bytes of data it stood for. */
static size_t send_piece(const uint8_t *bytes, size_t size) {
    const size_t count = bytes_before_zero(bytes, size);
    const uint8_t code = (uint8_t)(count + 1);
    pim_port_write(&code, 1);
    pim_port_write(bytes, count);
    return count == 254 ? count : count + 1; /* the zero behind it; behind the last piece one is imagined */
}

void pim_send(const struct pim_answer *answer) {
    const size_t size = PIM_HEADER_BYTES + answer->size + PIM_CRC_BYTES;
    const uint8_t end = 0;
    size_t sent = 0;
    while (sent < size) {
        sent += send_piece(answer->bytes + sent, size - sent);
    }
    if (sent == size && answer->bytes[size - 1] == 0) {
        const uint8_t empty_piece = 1;
        pim_port_write(&empty_piece, 1);
    }
    pim_port_write(&end, 1);
    pim_port_flush();
}
