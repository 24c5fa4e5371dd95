/* The output converter and the output formats: int32, int16, packed. */
#ifndef PIM_OUTPUT_H
#define PIM_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pim_config.h"

enum { PIM_OUTPUT_INT32 = 0, PIM_OUTPUT_INT16 = 1, PIM_OUTPUT_PACKED = 2 };
enum { PIM_OUTPUT_FORMATS = PIM_OUTPUT_BITS == 0 ? 2 : 3 }; /* without a converter there is no width to pack to */

bool pim_output_step_allowed(uint32_t step);

/* Bytes of a vector of n values. */
size_t pim_output_size(uint8_t format, uint32_t n);

/* Converts n values, writes them, and returns how many were clipped. */
uint32_t pim_output_write(uint8_t format, uint32_t step, int32_t *values, uint32_t n, uint8_t *bytes);

#endif
