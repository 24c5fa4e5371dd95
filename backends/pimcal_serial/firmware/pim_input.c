#include "pim_input.h"

#include <string.h>

#include "pim_bytes.h"

enum { LARGEST = (1 << (PIM_INPUT_BITS - 1)) - 1 };

static bool allowed(int32_t value) { return value >= -LARGEST && value <= LARGEST; }

static int8_t int4_at(const uint8_t *bytes, uint32_t index) {
    const int nibble = (bytes[index / 2] >> (4 * (index % 2))) & 15;
    return (int8_t)(nibble < 8 ? nibble : nibble - 16);
}

static bool bit_at(const uint8_t *mask, uint32_t index) { return ((mask[index / 8] >> (index % 8)) & 1) != 0; }

static uint32_t count_bits(const uint8_t *mask, uint32_t bits) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < bits; i++) {
        count += bit_at(mask, i) ? 1 : 0;
    }
    return count;
}

static enum pim_status check_int8(const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!allowed(pim_get_i8(bytes[i]))) {
            return PIM_BAD_VALUE;
        }
    }
    return PIM_OK;
}

static enum pim_status check_int4(const uint8_t *bytes, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (!allowed(int4_at(bytes, i))) {
            return PIM_BAD_VALUE;
        }
    }
    return n % 2 != 0 && bytes[n / 2] >> 4 != 0 ? PIM_BAD_VALUE : PIM_OK;
}

static enum pim_status check_zero_skipping(const uint8_t *bytes, size_t available, uint32_t n, size_t *size) {
    const size_t mask_size = (n + 7) / 8;
    if (mask_size > available) {
        return PIM_BAD_LENGTH;
    }
    *size = mask_size + count_bits(bytes, n);
    if (*size > available) {
        return PIM_BAD_LENGTH;
    }
    if (n % 8 != 0 && bytes[n / 8] >> (n % 8) != 0) {
        return PIM_BAD_VALUE;
    }
    return check_int8(bytes + mask_size, *size - mask_size);
}

enum pim_status pim_input_check(uint8_t format, const uint8_t *bytes, size_t available, uint32_t n, size_t *size) {
    if (format == PIM_INPUT_ZERO_SKIPPING) {
        return check_zero_skipping(bytes, available, n, size);
    }
    *size = format == PIM_INPUT_INT8 ? n : (n + 1) / 2;
    if (*size > available) {
        return PIM_BAD_LENGTH;
    }
    return format == PIM_INPUT_INT8 ? check_int8(bytes, n) : check_int4(bytes, n);
}

static void unpack_zero_skipping(const uint8_t *bytes, uint32_t n, int8_t *values) {
    const uint8_t *next = bytes + (n + 7) / 8;
    for (uint32_t i = 0; i < n; i++) {
        values[i] = bit_at(bytes, i) ? pim_get_i8(*next++) : 0;
    }
}

static void unpack_int4(const uint8_t *bytes, uint32_t n, int8_t *values) {
    for (uint32_t i = 0; i < n; i++) {
        values[i] = int4_at(bytes, i);
    }
}

static void unpack_int8(const uint8_t *bytes, uint32_t n, int8_t *values) {
    for (uint32_t i = 0; i < n; i++) {
        values[i] = pim_get_i8(bytes[i]);
    }
}

void pim_input_unpack(uint8_t format, const uint8_t *bytes, uint32_t n, int8_t *values) {
    if (format == PIM_INPUT_INT8) {
        unpack_int8(bytes, n, values);
    } else if (format == PIM_INPUT_INT4) {
        unpack_int4(bytes, n, values);
    } else {
        unpack_zero_skipping(bytes, n, values);
    }
}
