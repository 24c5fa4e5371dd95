/* Input formats: int8, int4, zero-skipping. */
#ifndef PIM_INPUT_H
#define PIM_INPUT_H

#include <stddef.h>
#include <stdint.h>

#include "pim_frame.h"

enum { PIM_INPUT_INT8 = 0, PIM_INPUT_INT4 = 1, PIM_INPUT_ZERO_SKIPPING = 2, PIM_INPUT_FORMATS = 3 };

/* Checks a vector of n values and sets how many of the available bytes it has. */
enum pim_status pim_input_check(uint8_t format, const uint8_t *bytes, size_t available, uint32_t n, size_t *size);

/* Writes the n values of a vector that was checked. */
void pim_input_unpack(uint8_t format, const uint8_t *bytes, uint32_t n, int8_t *values);

#endif
