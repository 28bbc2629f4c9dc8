/* The order book in C: marketprism.book's `Book` and `normalise` with the same results and the same errors, some
 * ten times as fast. book.py says what they do; tests/test_book.py compares the two on whatever comes.
 *
 * Levels go out as the text that came in, so nothing here becomes a Python object until a whole array of them is
 * asked for. A side keeps its prices as a sorted array of doubles, best last, beside the numbers of the slots that
 * hold the text: an insertion moves 12 bytes a level, and from the nearer end, not the text. Prices order and find
 * levels, they are never printed.
 *
 * The book holds no Python object, keeps no global state but constant tables, and never recurses.
 *
 * At the end stands `Pattern` of marketprism.pattern, which writes what comes of a change into an event's JSON.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    FIGURE_MAX = 128,     /* characters of a figure as sent */
    ADJUSTED_MAX = 40,    /* decimal places from the point to the first digit of one with an exponent */
    WRITTEN_MAX = 192,    /* characters of a figure written out: 128 + 40 + "0." + "-" and some */
    DEPTH_MAX = 32,       /* arrays and objects within each other */
    EXCERPT_MAX = 40,     /* bytes of a wrong figure in a message */
    INLINE_MAX = 46,      /* bytes of a level's text held in its slot: 39 of figures, 7 of `["",""]` */
    WIDE = 64,            /* a copy of so many bytes, known beforehand, is faster than one of the right length */
    SHORT = 16,           /* characters of most figures; two such and what is around them fit into a slot */
    LEVEL_MAX = 2 * WRITTEN_MAX + WIDE, /* room that is made for one level's text */
    CHECKSUM_LEVELS = 25,
    STEP = 8,             /* levels that are searched one by one */
};
#define NONE UINT32_MAX
#if defined(__GNUC__)
#define USUALLY(x) __builtin_expect(!!(x), 1)
#define SELDOM(x) __builtin_expect(!!(x), 0)
#else
#define USUALLY(x) (x)
#define SELDOM(x) (x)
#endif

/* -- output ------------------------------------------------------------------------------------------------------ */

typedef struct {
    char *start, *at, *limit;
    char local[8192]; /* enough for nearly every message */
} Out;

static void out_begin(Out *out)
{
    out->start = out->at = out->local;
    out->limit = out->local + sizeof out->local;
}

static int out_grow(Out *out)
{
    size_t used = (size_t)(out->at - out->start), size = 2 * (size_t)(out->limit - out->start);
    char *wider = PyMem_Realloc(out->start == out->local ? NULL : out->start, size);
    if (wider == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (out->start == out->local)
        memcpy(wider, out->local, used);
    out->start = wider;
    out->at = wider + used;
    out->limit = wider + size;
    return 0;
}

static void out_end(Out *out)
{
    if (out->start != out->local)
        PyMem_Free(out->start);
}

/* -- one side ---------------------------------------------------------------------------------------------------- */

typedef struct {
    char text[INLINE_MAX]; /* ["price","quantity"]; where it does not fit, the address of a copy on the heap;
                              in a free slot the number of the next free one */
    uint8_t price_len, quantity_len;
} Slot;

typedef struct {
    double key; /* the price of a bid, minus the price of an ask */
    uint32_t slot;
} Level;

typedef struct {
    Level *levels; /* by key, best last, with a gap where the last change was: the next one is mostly near */
    size_t count, capacity, gap; /* `gap`: the index of the level behind the gap */
    Slot *slots;
    uint32_t slots_used, slots_capacity, free_slot;
    size_t heap_bytes; /* of long texts */
    double sign;       /* 1.0 for bids, -1.0 for asks */
} Side;

static size_t text_len(const Slot *slot)
{
    return (size_t)slot->price_len + slot->quantity_len + 7;
}

static const char *text_of(const Slot *slot)
{
    const char *heap;
    if (text_len(slot) <= INLINE_MAX)
        return slot->text;
    memcpy(&heap, slot->text, sizeof heap);
    return heap;
}

static void slot_release(Side *side, Slot *slot)
{
    if (text_len(slot) > INLINE_MAX) {
        side->heap_bytes -= text_len(slot);
        PyMem_Free((char *)text_of(slot));
    }
    slot->price_len = slot->quantity_len = 0;
}

static const Level *after_gap(const Side *side)
{
    return side->levels + side->gap + (side->capacity - side->count);
}

/* The level of this index, 0 being the worst. */
static const Level *level_at(const Side *side, size_t index)
{
    return index < side->gap ? side->levels + index : after_gap(side) + (index - side->gap);
}

/* The n-th best, 0 being the best. */
static const Level *best_at(const Side *side, size_t n)
{
    return level_at(side, side->count - 1 - n);
}

static void side_clear(Side *side)
{
    for (size_t i = 0; i < side->count; i++)
        slot_release(side, side->slots + level_at(side, i)->slot);
    PyMem_Free(side->levels);
    PyMem_Free(side->slots);
    *side = (Side){.sign = side->sign, .free_slot = NONE};
}

static size_t side_bytes(const Side *side)
{
    return side->capacity * sizeof *side->levels + side->slots_capacity * sizeof(Slot) +
           side->heap_bytes;
}

/* The number of a free slot, or NONE without memory. */
static uint32_t slot_take(Side *side)
{
    uint32_t id = side->free_slot;
    if (id != NONE) {
        memcpy(&side->free_slot, side->slots[id].text, sizeof id);
        return id;
    }
    if (side->slots_used == side->slots_capacity) {
        uint32_t wider = side->slots_capacity < 64 ? 64 : 2 * side->slots_capacity;
        Slot *slots = wider > UINT32_MAX / 2 ? NULL : PyMem_Realloc(side->slots, wider * sizeof *slots);
        if (slots == NULL)
            return NONE;
        side->slots = slots;
        side->slots_capacity = wider;
    }
    side->slots[side->slots_used] = (Slot){0};
    return side->slots_used++;
}

static void slot_give(Side *side, uint32_t id)
{
    slot_release(side, side->slots + id);
    memcpy(side->slots[id].text, &side->free_slot, sizeof id);
    side->free_slot = id;
}

/* Put a level's text into its slot. `text` is followed by enough memory to copy INLINE_MAX bytes. */
static int slot_write(Side *side, Slot *slot, const char *text, size_t price_len, size_t quantity_len)
{
    size_t len = price_len + quantity_len + 7;
    char *heap = NULL;
    if (len > INLINE_MAX) {
        heap = PyMem_Malloc(len);
        if (heap == NULL)
            return -1;
    }
    if (text_len(slot) > INLINE_MAX)
        slot_release(side, slot);
    if (heap == NULL)
        memcpy(slot->text, text, INLINE_MAX);
    else {
        memcpy(heap, text, len);
        memcpy(slot->text, &heap, sizeof heap);
        side->heap_bytes += len;
    }
    slot->price_len = (uint8_t)price_len;
    slot->quantity_len = (uint8_t)quantity_len;
    return 0;
}

/* How many of `count` levels have a key below `key`. `from`: near where that ends; the changes of a message are mostly
   sorted and close together, so this looks eight levels around first, then in steps each twice as long. */
static size_t count_below(const Level *levels, size_t count, double key, size_t from)
{
    size_t at = from < count ? from : count, step = STEP, more = 0;
    if (at < count && levels[at].key < key) {
        for (; count - at >= step && levels[at + step - 1].key < key; step *= 2)
            at += step;
        for (step /= 2; step >= STEP; step /= 2)
            if (count - at >= step && levels[at + step - 1].key < key)
                at += step;
        if (count - at >= STEP)
            for (size_t n = 0; n < STEP; n++)
                more += levels[at + n].key < key;
        else
            for (size_t n = 0; n < count - at; n++)
                more += levels[at + n].key < key;
        return at + more;
    }
    for (; at >= step && levels[at - step].key >= key; step *= 2)
        at -= step;
    for (step /= 2; step >= STEP; step /= 2)
        if (at >= step && levels[at - step].key >= key)
            at -= step;
    if (at >= STEP)
        for (size_t n = 1; n <= STEP; n++)
            more += levels[at - n].key >= key;
    else
        for (size_t n = 1; n <= at; n++)
            more += levels[at - n].key >= key;
    return at - more;
}

/* The index of the first level whose key is not below `key`. */
static size_t find(const Side *side, double key, size_t from)
{
    size_t gap = side->gap;
    if (gap > 0 && side->levels[gap - 1].key >= key)
        return count_below(side->levels, gap, key, from);
    return gap + count_below(after_gap(side), side->count - gap, key, from > gap ? from - gap : 0);
}

static void move_gap(Side *side, size_t index)
{
    Level *levels = side->levels;
    size_t gap = side->gap, len = side->capacity - side->count;
    if (index < gap)
        memmove(levels + index + len, levels + index, (gap - index) * sizeof *levels);
    else
        memmove(levels + gap, levels + gap + len, (index - gap) * sizeof *levels);
    side->gap = index;
}

static int insert(Side *side, size_t index, Level level)
{
    if (side->count == side->capacity) { /* so there is no gap */
        size_t capacity = 2 * side->capacity + 64;
        Level *levels = PyMem_Realloc(side->levels, capacity * sizeof *levels);
        if (levels == NULL)
            return -1;
        side->levels = levels;
        side->capacity = capacity;
        side->gap = side->count;
    }
    if (index != side->gap)
        move_gap(side, index);
    side->levels[side->gap++] = level;
    side->count++;
    return 0;
}

static void remove_at(Side *side, size_t index)
{
    slot_give(side, level_at(side, index)->slot);
    if (index + 1 < side->gap)
        move_gap(side, index + 1);
    else if (index > side->gap)
        move_gap(side, index);
    side->gap -= index < side->gap;
    side->count--;
}

/* Set the level, or remove it where its quantity is 0; an unknown one is removed in peace. */
static int put(Side *side, size_t *hint, double price, const char *text, size_t price_len, size_t quantity_len,
               int removes)
{
    double key = side->sign * price;
    size_t index = *hint = find(side, key, *hint);
    const Level *level = level_at(side, index);
    if (index < side->count && level->key == key) {
        if (!removes)
            return slot_write(side, side->slots + level->slot, text, price_len, quantity_len);
        remove_at(side, index);
        return 0;
    }
    if (removes)
        return 0;
    uint32_t slot = slot_take(side);
    if (slot == NONE)
        return -1;
    if (slot_write(side, side->slots + slot, text, price_len, quantity_len) < 0 ||
        insert(side, index, (Level){key, slot}) < 0) {
        slot_give(side, slot);
        return -1;
    }
    return 0;
}

/* The best `count` levels as a JSON array. */
static PyObject *levels_text(const Side *side, size_t count)
{
    size_t size = count ? 1 : 2;
    for (size_t i = 0; i < count; i++)
        size += text_len(side->slots + best_at(side, i)->slot) + 1;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes == NULL)
        return NULL;
    char *at = PyBytes_AS_STRING(bytes), *limit = at + size;
    *at++ = '[';
    for (size_t i = 0; i < count; i++) {
        const Slot *slot = side->slots + best_at(side, i)->slot;
        size_t len = text_len(slot);
        if (len <= INLINE_MAX && limit - at >= INLINE_MAX)
            memcpy(at, slot->text, INLINE_MAX);
        else
            memcpy(at, text_of(slot), len);
        at += len;
        *at++ = ',';
    }
    limit[-1] = ']';
    return bytes;
}

/* -- JSON, where nothing is wanted of it but its end -------------------------------------------------------------- */

static int is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static const char *skip_space(const char *p, const char *end)
{
    while (SELDOM(p < end && is_space(*p)))
        p++;
    return p;
}

/* What follows `\u` as a number, or -1. */
static int hex4(const char *p, const char *end)
{
    int code = 0;
    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int letter = p[i] | 32;
        if (p[i] >= '0' && p[i] <= '9')
            code = code << 4 | (p[i] - '0');
        else if (letter >= 'a' && letter <= 'f')
            code = code << 4 | (letter - 'a' + 10);
        else
            return -1;
    }
    return code;
}

/* Each skip_… returns what follows, or NULL where no such thing stands at `p`. */
static const char *skip_escape(const char *p, const char *end)
{
    if (end - p < 2 || strchr("\"\\/bfnrtu", p[1]) == NULL || p[1] == '\0')
        return NULL;
    if (p[1] != 'u')
        return p + 2;
    int code = hex4(p + 2, end);
    if (code < 0 || (code >= 0xdc00 && code <= 0xdfff))
        return NULL;
    if (code < 0xd800 || code > 0xdfff)
        return p + 6;
    if (end - p < 12 || p[6] != '\\' || p[7] != 'u')
        return NULL;
    code = hex4(p + 8, end);
    return code >= 0xdc00 && code <= 0xdfff ? p + 12 : NULL;
}

static const char *skip_string(const char *p, const char *end)
{
    if (p == end || *p++ != '"')
        return NULL;
    while (p < end && *p != '"') {
        if (*p == '\\') {
            if ((p = skip_escape(p, end)) == NULL)
                return NULL;
        } else if ((unsigned char)*p++ < ' ')
            return NULL;
    }
    return p < end ? p + 1 : NULL;
}

static const char *skip_digits(const char *p, const char *end)
{
    const char *first = p;
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    return p > first ? p : NULL;
}

static const char *skip_number(const char *p, const char *end)
{
    p += p < end && *p == '-';
    const char *first = p;
    if ((p = skip_digits(p, end)) == NULL || (*first == '0' && p > first + 1))
        return NULL;
    if (p < end && *p == '.' && (p = skip_digits(p + 1, end)) == NULL)
        return NULL;
    if (p < end && (*p | 32) == 'e') {
        p++;
        p += p < end && (*p == '+' || *p == '-');
        p = skip_digits(p, end);
    }
    return p;
}

static const char *skip_word(const char *p, const char *end, const char *word)
{
    size_t len = strlen(word);
    return (size_t)(end - p) >= len && memcmp(p, word, len) == 0 ? p + len : NULL;
}

static const char *skip_scalar(const char *p, const char *end)
{
    switch (p < end ? *p : '\0') {
    case '"':
        return skip_string(p, end);
    case 't':
        return skip_word(p, end, "true");
    case 'f':
        return skip_word(p, end, "false");
    case 'n':
        return skip_word(p, end, "null");
    default:
        return skip_number(p, end);
    }
}

static const char *skip_name(const char *p, const char *end)
{
    if ((p = skip_string(skip_space(p, end), end)) == NULL)
        return NULL;
    p = skip_space(p, end);
    return p < end && *p == ':' ? p + 1 : NULL;
}

/* Any value, with the space before it; arrays and objects within each other at most `depth_max` deep. */
static const char *skip_value(const char *p, const char *end, int depth_max)
{
    char closing[DEPTH_MAX]; /* what ends each array or object that is open */
    int depth = 0;
    for (;;) {
        p = skip_space(p, end);
        if (p < end && (*p == '[' || *p == '{')) {
            if (depth == depth_max)
                return NULL;
            closing[depth++] = *p == '[' ? ']' : '}';
            const char *inside = skip_space(p + 1, end);
            if (inside == end || *inside != closing[depth - 1]) {
                p = *p == '[' ? inside : skip_name(inside, end);
                if (p == NULL)
                    return NULL;
                continue;
            }
            p = inside;
        } else {
            if ((p = skip_scalar(p, end)) == NULL || depth == 0)
                return p;
            p = skip_space(p, end);
        }
        while (p < end && *p == closing[depth - 1]) {
            p++;
            if (--depth == 0)
                return p;
            p = skip_space(p, end);
        }
        if (p == end || *p++ != ',')
            return NULL;
        if (closing[depth - 1] == '}' && (p = skip_name(p, end)) == NULL)
            return NULL;
    }
}

/* Whether this is JSON, an array of arrays. */
static int well_formed(const char *p, const char *end)
{
    p = skip_space(p, end);
    if (p == end || *p++ != '[')
        return 0;
    p = skip_space(p, end);
    if (p < end && *p == ']')
        return skip_space(p + 1, end) == end;
    for (;;) {
        p = skip_space(p, end);
        if (p == end || *p != '[' || (p = skip_value(p, end, DEPTH_MAX - 1)) == NULL)
            return 0;
        p = skip_space(p, end);
        if (p == end || (*p != ',' && *p != ']'))
            return 0;
        if (*p++ == ']')
            return skip_space(p, end) == end;
    }
}

/* -- figures ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *text; /* as it goes out, without quotes */
    size_t len;
    uint64_t mantissa; /* what the digits say without the point, if at most 19 */
    size_t digits, fraction;
    int quoted, negative, exponent, out_of_range;
    char written[WRITTEN_MAX];
} Figure;

/* Whether all its digits are 0. */
static int is_zero(const Figure *f)
{
    if (f->digits <= 19 && !f->exponent)
        return f->mantissa == 0;
    for (size_t i = 0; i < f->len; i++)
        if (f->text[i] >= '1' && f->text[i] <= '9')
            return 0;
    return 1;
}

/* The double nearest to it, or -1.0 with an exception set. Never infinite: see FIGURE_MAX and ADJUSTED_MAX. */
static double value_of(const Figure *f)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9, 1e10,
                                    1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19};
    char terminated[WRITTEN_MAX + 1];
    if (f->digits <= 19 && f->mantissa <= (uint64_t)1 << 53 && !f->exponent) {
        /* Both are exact, so their quotient is rounded once: correctly. */
        double value = (double)(int64_t)f->mantissa / powers[f->fraction];
        return f->negative ? -value : value;
    }
    memcpy(terminated, f->text, f->len);
    terminated[f->len] = '\0';
    return PyOS_string_to_double(terminated, NULL, NULL);
}

/* A figure with an exponent as the same number would be sent without, as Python's Decimal writes it; an integer
   that needed the exponent ends in ".0". Returns 0 on one of absurd size. `power` is what follows the `e`. */
static int write_out(Figure *f, const char *power)
{
    char digits[FIGURE_MAX];
    long n = 0, exponent = 0, fraction = (long)f->fraction;
    int below = *power == '-';
    for (const char *p = f->text; (*p | 32) != 'e'; p++)
        if (*p >= '0' && *p <= '9' && (n || *p != '0'))
            digits[n++] = *p;
    for (power += *power == '-' || *power == '+'; *power >= '0' && *power <= '9'; power++)
        if (exponent < 10 * FIGURE_MAX)
            exponent = exponent * 10 + (*power - '0');
    exponent = (below ? -exponent : exponent) - fraction;
    int zero = n == 0;
    if (zero)
        digits[n++] = '0';
    if (labs(exponent + n - 1) > ADJUSTED_MAX)
        return 0;
    char *to = f->written;
    if (f->negative)
        *to++ = '-';
    long whole = n + exponent; /* digits before the point */
    if (exponent >= 0) {
        memcpy(to, digits, (size_t)n);
        to += n;
        if (exponent && !zero) {
            memset(to, '0', (size_t)exponent);
            to += exponent;
        }
        if (exponent) {
            *to++ = '.';
            *to++ = '0';
        }
    } else if (whole > 0) {
        memcpy(to, digits, (size_t)whole);
        to[whole] = '.';
        memcpy(to + whole + 1, digits + whole, (size_t)(n - whole));
        to += n + 1;
    } else {
        *to++ = '0';
        *to++ = '.';
        memset(to, '0', (size_t)-whole);
        memcpy(to - whole, digits, (size_t)n);
        to += n - whole;
    }
    f->text = f->written;
    f->len = (size_t)(to - f->written);
    return 1;
}

static int is_digit(char c)
{
    return (unsigned char)(c - '0') <= 9;
}

/* The figure at `p`, a JSON number or a decimal number in quotes; returns what follows it, or NULL. What `p` points
   into ends in a `]`, so that no loop here needs to look for the end. */
static const char *read_figure(const char *p, Figure *f)
{
    f->exponent = f->out_of_range = 0;
    f->quoted = f->negative = 0;
    if (USUALLY(*p == '"')) {
        f->quoted = 1;
        p++;
    }
    f->text = p;
    if (SELDOM(*p == '-')) {
        f->negative = 1;
        p++;
    }
    const char *first = p;
    uint64_t mantissa = 0;
    for (; is_digit(*p); p++)
        mantissa = mantissa * 10 + (uint64_t)(*p - '0');
    size_t whole = (size_t)(p - first);
    f->fraction = 0;
    if (*p == '.') {
        const char *point = ++p;
        for (; is_digit(*p); p++)
            mantissa = mantissa * 10 + (uint64_t)(*p - '0');
        f->fraction = (size_t)(p - point);
        if (!f->quoted && !f->fraction)
            return NULL;
    }
    f->mantissa = mantissa;
    f->digits = whole + f->fraction;
    if (f->quoted ? !f->digits : !whole || (whole > 1 && *first == '0'))
        return NULL;
    const char *power = NULL;
    if (SELDOM((*p | 32) == 'e')) {
        power = ++p;
        p += *p == '+' || *p == '-';
        if (!is_digit(*p))
            return NULL;
        while (is_digit(*p))
            p++;
    }
    f->len = (size_t)(p - f->text);
    if (f->quoted && *p++ != '"')
        return NULL;
    if (f->len > FIGURE_MAX || (power && !write_out(f, power))) {
        f->out_of_range = 1;
        return NULL;
    }
    f->exponent = power != NULL;
    return p;
}

/* -- levels ------------------------------------------------------------------------------------------------------ */

/* Deribit's word before a price; returns what follows it, or `p` where none stands there. */
static const char *skip_action(const char *p, const char *end, int *deletes)
{
    const char *after;
    *deletes = 0;
    if ((after = skip_word(p, end, "\"new\"")) || (after = skip_word(p, end, "\"change\"")))
        return after;
    if ((after = skip_word(p, end, "\"delete\"")) == NULL)
        return p;
    *deletes = 1;
    return after;
}

static void raise_about(const char *what, const char *text, Py_ssize_t len)
{
    PyObject *excerpt = PyUnicode_DecodeUTF8(text, len < EXCERPT_MAX ? len : EXCERPT_MAX, "replace");
    if (excerpt != NULL)
        PyErr_Format(PyExc_ValueError, "%s: %R", what, excerpt);
    Py_XDECREF(excerpt);
}

/* Raise what is wrong with the first level that `read_levels` could not take; the whole text is well-formed JSON. */
static void raise_about_level(const char *level, const char *end)
{
    static const char *const unreadable[] = {"price is not a decimal number", "quantity is not a decimal number"};
    static const char *const absurd[] = {"price is out of range", "quantity is out of range"};
    const char *tokens[2] = {NULL, NULL}, *ends[2] = {NULL, NULL};
    int found = 0, deletes;
    const char *first = skip_space(level + 1, end), *p = skip_space(skip_action(first, end, &deletes), end);
    while (*p != ']' && found < 2) {
        p = skip_space(p + (*p == ','), end);
        tokens[found] = p;
        ends[found++] = p = skip_value(p, end, DEPTH_MAX);
        p = skip_space(p, end);
    }
    if (found < 2) {
        raise_about("level has no price and quantity", level, skip_value(level, end, DEPTH_MAX) - level);
        return;
    }
    const char *wrong = NULL;
    Figure figure;
    for (found = 0; found < 2 && wrong == NULL; found++)
        if (read_figure(tokens[found], &figure) == NULL)
            wrong = figure.out_of_range ? absurd[found] : unreadable[found];
    if (wrong == NULL)
        wrong = "quantity is below 0";
    int quoted = *tokens[found - 1] == '"';
    raise_about(wrong, tokens[found - 1] + quoted, ends[found - 1] - tokens[found - 1] - 2 * quoted);
}

/* Append ["price","quantity"] to `out`, which has room for it. `level`: where the level began. */
static inline size_t write_level(char *at, const char *level, const char *end, const Figure *price,
                                 const Figure *quantity)
{
    size_t len = price->len + quantity->len + 6; /* without the last bracket */
    if (price->quoted && quantity->quoted && price->text == level + 2 &&
        quantity->text == price->text + price->len + 3) {
        /* It was sent as we write it. */
        if (len <= WIDE && end - level >= WIDE)
            memcpy(at, level, WIDE);
        else
            memcpy(at, level, len);
    } else {
        memcpy(at, "[\"", 2);
        memcpy(at + 2, price->text, price->len);
        memcpy(at + 2 + price->len, "\",\"", 3);
        memcpy(at + 5 + price->len, quantity->text, quantity->len);
        at[len - 1] = '"';
    }
    at[len] = ']';
    return len + 1;
}

/* Read a whole array of levels: into `side` if there is one, as text to `out` if `keep`. */
static int read_levels(Side *side, const Py_buffer *view, Out *out, int keep)
{
    const char *begin = view->buf, *end = begin + view->len, *level = begin, *p;
    Figure price, quantity;
    size_t hint = side ? side->count : 0;
    int deletes;
    while (end > begin && is_space(end[-1]))
        end--;
    if (end == begin || *--end != ']')
        goto refuse;
    /* `end` is the last bracket: whatever runs over digits stops there. */
    p = skip_space(begin, end);
    if (*p != '[' || p == end)
        goto refuse;
    *out->at++ = '[';
    p = skip_space(p + 1, end);
    while (p < end) {
        level = p;
        if (*p++ != '[')
            goto refuse;
        p = skip_space(p, end);
        deletes = 0;
        if (SELDOM(p[0] == '"' && p[1] > '9')) {
            p = skip_space(skip_action(p, end, &deletes), end);
            if (*p++ != ',')
                goto refuse;
            p = skip_space(p, end);
        }
        if ((p = read_figure(p, &price)) == NULL)
            goto refuse;
        double value = side ? value_of(&price) : 0.0; /* a division, which takes its time */
        if (value == -1.0 && PyErr_Occurred())
            return -1;
        p = skip_space(p, end);
        if (*p++ != ',')
            goto refuse;
        if ((p = read_figure(skip_space(p, end), &quantity)) == NULL)
            goto refuse;
        p = skip_space(p, end);
        while (*p == ',') {
            if ((p = skip_value(p + 1, end, DEPTH_MAX - 2)) == NULL)
                goto refuse;
            p = skip_space(p, end);
        }
        if (*p != ']' || p == end)
            goto refuse;
        p++;
        int removes = deletes || is_zero(&quantity);
        if (deletes) { /* has amount 0 by the documentation; the word counts */
            quantity.text = "0.0";
            quantity.len = 3;
        } else if (quantity.negative && !removes)
            goto refuse;
        if (out->limit - out->at < LEVEL_MAX && out_grow(out) < 0)
            return -1;
        size_t len = write_level(out->at, level, end, &price, &quantity);
        if (side && put(side, &hint, value, out->at, price.len, quantity.len, removes) < 0) {
            PyErr_NoMemory();
            return -1;
        }
        if (keep) {
            out->at += len;
            *out->at++ = ',';
        }
        p = skip_space(p, end);
        if (p == end)
            break;
        if (*p++ != ',')
            goto refuse;
        p = skip_space(p, end);
        if (p == end)
            goto refuse; /* a comma too many */
    }
    if (out->at[-1] == ',')
        out->at--;
    *out->at++ = ']';
    return 0;

refuse:
    end = begin + view->len;
    if (well_formed(begin, end))
        raise_about_level(level, end);
    else
        raise_about("levels are not a JSON array of arrays", begin, view->len);
    return -1;
}

/* The same, with the text as a bytes object. */
static PyObject *read_and_normalise(Side *side, const Py_buffer *view)
{
    Out out;
    PyObject *text = NULL;
    out_begin(&out);
    if (read_levels(side, view, &out, 1) == 0)
        text = PyBytes_FromStringAndSize(out.start, out.at - out.start);
    out_end(&out);
    return text;
}

static int load_levels(Side *side, const Py_buffer *view)
{
    Out out;
    out_begin(&out);
    side_clear(side);
    int status = read_levels(side, view, &out, 0);
    out_end(&out);
    return status;
}

/* -- OKX's checksum ---------------------------------------------------------------------------------------------- */

static uint32_t crc_tables[8][256]; /* written once, when the module is made */

static void make_crc_tables(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        crc_tables[0][n] = crc;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int table = 1; table < 8; table++) {
            uint32_t before = crc_tables[table - 1][n];
            crc_tables[table][n] = before >> 8 ^ crc_tables[0][before & 255];
        }
}

/* CRC32 as in zlib, eight bytes a step. */
static uint32_t crc32_of(const unsigned char *p, size_t len)
{
    uint32_t crc = ~0u;
    for (; len >= 8; p += 8, len -= 8) {
        crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        crc = crc_tables[7][crc & 255] ^ crc_tables[6][crc >> 8 & 255] ^ crc_tables[5][crc >> 16 & 255] ^
              crc_tables[4][crc >> 24] ^ crc_tables[3][p[4]] ^ crc_tables[2][p[5]] ^ crc_tables[1][p[6]] ^
              crc_tables[0][p[7]];
    }
    for (; len; p++, len--)
        crc = crc >> 8 ^ crc_tables[0][(crc ^ *p) & 255];
    return ~crc;
}

/* Append "price:quantity:" of the level that is `n`-th best. There is room for SHORT bytes more than that. */
static inline char *append_pair(char *at, const Side *side, size_t n)
{
    if (n >= side->count)
        return at;
    const Slot *slot = side->slots + best_at(side, n)->slot;
    size_t price_len = slot->price_len, quantity_len = slot->quantity_len;
    if (USUALLY(price_len <= SHORT && quantity_len <= SHORT)) { /* so it is in the slot; see WIDE */
        memcpy(at, slot->text + 2, SHORT);
        at[price_len] = ':';
        at += price_len + 1;
        memcpy(at, slot->text + 5 + price_len, SHORT);
    } else {
        const char *text = text_of(slot);
        memcpy(at, text + 2, price_len);
        at[price_len] = ':';
        at += price_len + 1;
        memcpy(at, text + 5 + price_len, quantity_len);
    }
    at[quantity_len] = ':';
    return at + quantity_len + 1;
}

/* -- Book -------------------------------------------------------------------------------------------------------- */

typedef struct { /* the last known level of a side that was cut */
    int known;
    double key;
    size_t len;
    char price[WRITTEN_MAX];
} Edge;

typedef struct {
    PyObject_HEAD
    Side bids, asks;
    Edge low, high;
} Book;

static PyObject *book_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Book", names))
        return NULL;
    Book *self = (Book *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->bids = (Side){.sign = 1.0, .free_slot = NONE};
        self->asks = (Side){.sign = -1.0, .free_slot = NONE};
    }
    return (PyObject *)self;
}

static void book_dealloc(Book *self)
{
    side_clear(&self->bids);
    side_clear(&self->asks);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *book_sizeof(Book *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(sizeof *self + side_bytes(&self->bids) + side_bytes(&self->asks));
}

/* Both arrays as buffers. Before anything is touched: an object's __buffer__ may run Python code. */
static int get_views(PyObject *bids, PyObject *asks, Py_buffer views[2])
{
    if (PyObject_GetBuffer(bids, &views[0], PyBUF_SIMPLE) < 0)
        return -1;
    if (PyObject_GetBuffer(asks, &views[1], PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&views[0]);
        return -1;
    }
    return 0;
}

static void release_views(Py_buffer views[2])
{
    PyBuffer_Release(&views[0]);
    PyBuffer_Release(&views[1]);
}

static void set_edge(Edge *edge, const Side *side, int cut)
{
    edge->known = cut && side->count;
    if (!edge->known)
        return;
    const Level *level = level_at(side, 0);
    const Slot *slot = side->slots + level->slot;
    edge->key = level->key;
    edge->len = slot->price_len;
    memcpy(edge->price, text_of(slot) + 2, slot->price_len);
}

static PyObject *book_load(Book *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "cut_bids", "cut_asks", NULL};
    PyObject *bids, *asks;
    int cut_bids = 0, cut_asks = 0;
    Py_buffer views[2];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$pp:load", names, &bids, &asks, &cut_bids, &cut_asks) ||
        get_views(bids, asks, views) < 0)
        return NULL;
    self->low.known = self->high.known = 0;
    int status = load_levels(&self->bids, &views[0]) < 0 || load_levels(&self->asks, &views[1]) < 0;
    release_views(views);
    if (status)
        return NULL;
    set_edge(&self->low, &self->bids, cut_bids);
    set_edge(&self->high, &self->asks, cut_asks);
    Py_RETURN_NONE;
}

/* A pair of new references, either of which may be NULL after an error. */
static PyObject *pair(PyObject *first, PyObject *second)
{
    PyObject *both = first && second ? PyTuple_Pack(2, first, second) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(second);
    return both;
}

static PyObject *book_apply(Book *self, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer views[2];
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "apply() takes 2 arguments, bids and asks (%zd given)", count);
    if (get_views(args[0], args[1], views) < 0)
        return NULL;
    PyObject *bids = read_and_normalise(&self->bids, &views[0]);
    PyObject *asks = bids ? read_and_normalise(&self->asks, &views[1]) : NULL;
    release_views(views);
    return pair(bids, asks);
}

static size_t known(const Side *side, const Edge *edge)
{
    return side->count - (edge->known ? find(side, edge->key, 0) : 0);
}

static PyObject *book_known_levels(Book *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("nn", (Py_ssize_t)known(&self->bids, &self->low),
                         (Py_ssize_t)known(&self->asks, &self->high));
}

static PyObject *book_sizes(Book *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("nn", (Py_ssize_t)self->bids.count, (Py_ssize_t)self->asks.count);
}

static PyObject *book_top(Book *self, PyObject *argument)
{
    Py_ssize_t depth = PyNumber_AsSsize_t(argument, NULL);
    if (depth == -1 && PyErr_Occurred())
        return NULL;
    size_t most = depth > 0 ? (size_t)depth : 0;
    size_t bids = known(&self->bids, &self->low), asks = known(&self->asks, &self->high);
    bids = bids < most ? bids : most;
    asks = asks < most ? asks : most;
    PyObject *bids_text = levels_text(&self->bids, bids);
    PyObject *asks_text = bids_text ? levels_text(&self->asks, asks) : NULL;
    if (asks_text == NULL) {
        Py_XDECREF(bids_text);
        return NULL;
    }
    return Py_BuildValue("NNnn", bids_text, asks_text, (Py_ssize_t)bids, (Py_ssize_t)asks);
}

static PyObject *book_all(Book *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *bids = levels_text(&self->bids, self->bids.count);
    return pair(bids, bids ? levels_text(&self->asks, self->asks.count) : NULL);
}

static PyObject *best_of(const Side *side)
{
    if (side->count == 0)
        Py_RETURN_NONE;
    const Slot *slot = side->slots + best_at(side, 0)->slot;
    const char *text = text_of(slot);
    return Py_BuildValue("s#s#", text + 2, (Py_ssize_t)slot->price_len, text + 5 + slot->price_len,
                         (Py_ssize_t)slot->quantity_len);
}

static PyObject *book_best(Book *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *bid = best_of(&self->bids);
    return pair(bid, bid ? best_of(&self->asks) : NULL);
}

static PyObject *book_checksum(Book *self, PyObject *Py_UNUSED(ignored))
{
    char text[2 * CHECKSUM_LEVELS * 2 * WRITTEN_MAX + SHORT], *at = text;
    for (size_t n = 0; n < CHECKSUM_LEVELS; n++) {
        at = append_pair(at, &self->bids, n);
        at = append_pair(at, &self->asks, n);
    }
    at -= at > text; /* the last colon */
    return PyLong_FromLong((int32_t)crc32_of((const unsigned char *)text, (size_t)(at - text)));
}

static PyObject *book_crossed(Book *self, void *Py_UNUSED(closure))
{
    const Side *bids = &self->bids, *asks = &self->asks;
    return PyBool_FromLong(bids->count && asks->count && best_at(bids, 0)->key >= -best_at(asks, 0)->key);
}

static PyObject *edge_price(const Edge *edge)
{
    if (!edge->known)
        Py_RETURN_NONE;
    return PyUnicode_FromStringAndSize(edge->price, (Py_ssize_t)edge->len);
}

static PyObject *book_exact_from(Book *self, void *Py_UNUSED(closure))
{
    return edge_price(&self->low);
}

static PyObject *book_exact_to(Book *self, void *Py_UNUSED(closure))
{
    return edge_price(&self->high);
}

static PyMethodDef book_methods[] = {
    {"load", (PyCFunction)(void (*)(void))book_load, METH_VARARGS | METH_KEYWORDS, NULL},
    {"apply", (PyCFunction)(void (*)(void))book_apply, METH_FASTCALL, NULL},
    {"known_levels", (PyCFunction)book_known_levels, METH_NOARGS, NULL},
    {"sizes", (PyCFunction)book_sizes, METH_NOARGS, NULL},
    {"top", (PyCFunction)book_top, METH_O, NULL},
    {"all", (PyCFunction)book_all, METH_NOARGS, NULL},
    {"best", (PyCFunction)book_best, METH_NOARGS, NULL},
    {"checksum", (PyCFunction)book_checksum, METH_NOARGS, NULL},
    {"__sizeof__", (PyCFunction)book_sizeof, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef book_properties[] = {
    {"crossed", (getter)book_crossed, NULL, NULL, NULL},
    {"exact_from", (getter)book_exact_from, NULL, NULL, NULL},
    {"exact_to", (getter)book_exact_to, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject BookType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "marketprism._book.Book",
    .tp_basicsize = sizeof(Book),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "See marketprism.book.",
    .tp_new = book_new,
    .tp_dealloc = (destructor)book_dealloc,
    .tp_methods = book_methods,
    .tp_getset = book_properties,
};

/* -- Pattern ------------------------------------------------------------------------------------------------------ */

enum {
    PLACES_MAX = 16,
    DIGITS_MAX = 20, /* of a 64-bit number, with its sign */
};

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Py_ssize_t places;
    PyObject *parts[PLACES_MAX + 1]; /* bytes */
} Pattern;

static PyObject *encode; /* msgspec's, for a value that is not simple; set once, when the module is made */

typedef struct {
    const char *text;
    Py_ssize_t len;
    int quoted;
    PyObject *owner; /* holds `text`, where nobody else does */
    char digits[DIGITS_MAX];
} Piece;

static void piece_of_int(Piece *piece, long long value)
{
    unsigned long long left = value < 0 ? 0 - (unsigned long long)value : (unsigned long long)value;
    char *end = piece->digits + DIGITS_MAX, *at = end;
    do
        *--at = (char)('0' + left % 10);
    while (left /= 10);
    if (value < 0)
        *--at = '-';
    piece->text = at;
    piece->len = end - at;
}

/* Whether a string is the same in JSON. */
static int is_plain(const char *text, Py_ssize_t len)
{
    for (Py_ssize_t i = 0; i < len; i++)
        if (text[i] < ' ' || text[i] == '"' || text[i] == '\\')
            return 0;
    return 1;
}

/* The JSON of a value; -1 with an exception set where it has none. */
static int piece_of(Piece *piece, PyObject *value)
{
    int overflow = 0;
    piece->quoted = 0;
    if (PyBytes_CheckExact(value)) {
        piece->text = PyBytes_AS_STRING(value);
        piece->len = PyBytes_GET_SIZE(value);
        return 0;
    }
    if (value == Py_None) {
        piece->text = "null";
        piece->len = 4;
        return 0;
    }
    if (PyLong_CheckExact(value)) {
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (!overflow) {
            piece_of_int(piece, number);
            return 0;
        }
    } else if (PyUnicode_CheckExact(value) && PyUnicode_IS_COMPACT_ASCII(value)) {
        piece->text = (const char *)PyUnicode_1BYTE_DATA(value);
        piece->len = PyUnicode_GET_LENGTH(value);
        if (is_plain(piece->text, piece->len)) {
            piece->quoted = 1;
            return 0;
        }
    }
    piece->owner = PyObject_CallOneArg(encode, value);
    if (piece->owner == NULL)
        return -1;
    if (!PyBytes_Check(piece->owner)) {
        PyErr_SetString(PyExc_TypeError, "encode() gave no bytes");
        return -1;
    }
    piece->text = PyBytes_AS_STRING(piece->owner);
    piece->len = PyBytes_GET_SIZE(piece->owner);
    return 0;
}

static char *append(char *at, const char *text, Py_ssize_t len)
{
    memcpy(at, text, (size_t)len);
    return at + len;
}

static char *append_part(char *at, PyObject *part)
{
    return append(at, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part));
}

static PyObject *pattern_call(Pattern *self, PyObject *const *values, size_t flags, PyObject *names)
{
    Piece pieces[PLACES_MAX];
    PyObject *filled = NULL;
    Py_ssize_t given = PyVectorcall_NARGS(flags), done = 0;
    if (given != self->places || names != NULL)
        return PyErr_Format(PyExc_TypeError, "a pattern of %zd places got %zd values", self->places, given);
    Py_ssize_t size = PyBytes_GET_SIZE(self->parts[0]);
    for (; done < given; done++) {
        Piece *piece = pieces + done;
        piece->owner = NULL;
        if (piece_of(piece, values[done]) < 0) {
            done++;
            goto end;
        }
        size += piece->len + 2 * piece->quoted + PyBytes_GET_SIZE(self->parts[done + 1]);
    }
    filled = PyBytes_FromStringAndSize(NULL, size);
    if (filled == NULL)
        goto end;
    char *at = append_part(PyBytes_AS_STRING(filled), self->parts[0]);
    for (Py_ssize_t i = 0; i < given; i++) {
        if (pieces[i].quoted)
            *at++ = '"';
        at = append(at, pieces[i].text, pieces[i].len);
        if (pieces[i].quoted)
            *at++ = '"';
        at = append_part(at, self->parts[i + 1]);
    }
end:
    while (done > 0)
        Py_XDECREF(pieces[--done].owner);
    return filled;
}

static PyObject *pattern_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t count = PyTuple_GET_SIZE(args);
    if (count < 1 || count > PLACES_MAX + 1 || (kwargs != NULL && PyDict_GET_SIZE(kwargs)))
        return PyErr_Format(PyExc_TypeError, "a pattern has 1 to %d parts (%zd given)", PLACES_MAX + 1, count);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!PyBytes_CheckExact(PyTuple_GET_ITEM(args, i)))
            return PyErr_Format(PyExc_TypeError, "a part of a pattern is bytes");
    Pattern *self = (Pattern *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = (vectorcallfunc)(void (*)(void))pattern_call;
    self->places = count - 1;
    for (Py_ssize_t i = 0; i < count; i++)
        self->parts[i] = Py_NewRef(PyTuple_GET_ITEM(args, i));
    return (PyObject *)self;
}

static void pattern_dealloc(Pattern *self)
{
    for (Py_ssize_t i = 0; i <= self->places; i++)
        Py_XDECREF(self->parts[i]);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject PatternType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "marketprism._book.Pattern",
    .tp_basicsize = sizeof(Pattern),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_doc = "See marketprism.pattern.",
    .tp_new = pattern_new,
    .tp_dealloc = (destructor)pattern_dealloc,
    .tp_vectorcall_offset = offsetof(Pattern, vectorcall),
    .tp_call = PyVectorcall_Call,
};

/* -- module ------------------------------------------------------------------------------------------------------ */

static PyObject *normalise(PyObject *Py_UNUSED(module), PyObject *levels)
{
    Py_buffer view;
    if (PyObject_GetBuffer(levels, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *text = read_and_normalise(NULL, &view);
    PyBuffer_Release(&view);
    return text;
}

static PyMethodDef functions[] = {
    {"normalise", normalise, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static int exec_module(PyObject *module)
{
    make_crc_tables();
    PyObject *json = PyImport_ImportModule("msgspec.json");
    Py_XSETREF(encode, json ? PyObject_GetAttrString(json, "encode") : NULL);
    Py_XDECREF(json);
    if (encode == NULL)
        return -1;
    return PyModule_AddType(module, &BookType) < 0 ? -1 : PyModule_AddType(module, &PatternType);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, exec_module},
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "marketprism._book",
    .m_doc = "The order book in C, and Pattern; see marketprism.book and marketprism.pattern.",
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__book(void)
{
    return PyModuleDef_Init(&module_def);
}
