/* Little-endian numbers in bytes, without regard to alignment or the machine's own order. */
#ifndef PIM_BYTES_H
#define PIM_BYTES_H

#include <stdint.h>

static inline int8_t pim_get_i8(uint8_t byte) { return (int8_t)(byte < 128 ? byte : byte - 256); }

static inline uint16_t pim_get_u16(const uint8_t *at) { return (uint16_t)(at[0] | (at[1] << 8)); }

static inline int16_t pim_get_i16(const uint8_t *at) {
    const int32_t value = pim_get_u16(at);
    return (int16_t)(value < 32768 ? value : value - 65536);
}

static inline uint32_t pim_get_u32(const uint8_t *at) {
    return (uint32_t)pim_get_u16(at) | ((uint32_t)pim_get_u16(at + 2) << 16);
}

static inline int32_t pim_get_i32(const uint8_t *at) {
    const int64_t value = pim_get_u32(at);
    return (int32_t)(value < 2147483648 ? value : value - 4294967296);
}

static inline void pim_put_u16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value & 0xFF);
    at[1] = (uint8_t)((value >> 8) & 0xFF);
}

static inline void pim_put_u32(uint8_t *at, uint32_t value) {
    pim_put_u16(at, value);
    pim_put_u16(at + 2, value >> 16);
}

#endif
