#include "pim_output.h"

#include "pim_bytes.h"

struct range {
    int32_t low;
    int32_t high;
};

bool pim_output_step_allowed(uint32_t step) {
    return PIM_OUTPUT_BITS == 0 ? step == 1 : step >= 1 && step <= (1u << 24);
}

size_t pim_output_size(uint8_t format, uint32_t n) {
    if (format == PIM_OUTPUT_PACKED) {
        return ((size_t)n * PIM_OUTPUT_BITS + 7) / 8;
    }
    return (size_t)n * (format == PIM_OUTPUT_INT32 ? 4 : 2);
}

static struct range output_range(uint8_t format) {
    const int32_t largest = PIM_OUTPUT_BITS == 0 ? 0 : (1 << (PIM_LARGER(PIM_OUTPUT_BITS, 1) - 1)) - 1;
    if (PIM_OUTPUT_BITS != 0) {
        return (struct range){-largest, largest};
    }
    return format == PIM_OUTPUT_INT16 ? (struct range){INT16_MIN, INT16_MAX} : (struct range){INT32_MIN, INT32_MAX};
}

/* value / step to the nearest, halves away from zero. */
static int32_t divided(int32_t value, uint32_t step) {
    const int64_t half = step / 2;
    const int64_t quotient = value >= 0 ? (value + half) / step : -((half - value) / step);
    return (int32_t)quotient;
}

static uint32_t clip(int32_t *value, struct range range) {
    const int32_t before = *value;
    if (before < range.low) {
        *value = range.low;
    } else if (before > range.high) {
        *value = range.high;
    }
    return before == *value ? 0 : 1;
}

static uint32_t convert(uint8_t format, uint32_t step, int32_t *values, uint32_t n) {
    const struct range range = output_range(format);
    uint32_t saturated = 0;
    for (uint32_t j = 0; j < n; j++) {
        values[j] = step == 1 ? values[j] : divided(values[j], step);
        saturated += clip(&values[j], range);
    }
    return saturated;
}

static void write_packed(const int32_t *values, uint32_t n, uint8_t *bytes) {
    uint32_t bits = 0; /* not yet written, the first in the lowest place */
    uint32_t count = 0;
    for (uint32_t j = 0; j < n; j++) {
        bits |= ((uint32_t)values[j] & ((1u << PIM_OUTPUT_BITS) - 1)) << count;
        for (count += PIM_OUTPUT_BITS; count >= 8; count -= 8) {
            *bytes++ = (uint8_t)(bits & 0xFF);
            bits >>= 8;
        }
    }
    if (count > 0) {
        *bytes = (uint8_t)bits;
    }
}

static void write_whole(uint8_t format, const int32_t *values, uint32_t n, uint8_t *bytes) {
    for (uint32_t j = 0; j < n; j++) {
        if (format == PIM_OUTPUT_INT32) {
            pim_put_u32(bytes + 4 * j, (uint32_t)values[j]);
        } else {
            pim_put_u16(bytes + 2 * j, (uint32_t)values[j]);
        }
    }
}

uint32_t pim_output_write(uint8_t format, uint32_t step, int32_t *values, uint32_t n, uint8_t *bytes) {
    const uint32_t saturated = convert(format, step, values, n);
    if (format == PIM_OUTPUT_PACKED) {
        write_packed(values, n, bytes);
    } else {
        write_whole(format, values, n, bytes);
    }
    return saturated;
}
