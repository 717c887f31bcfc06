#define _GNU_SOURCE /* strtof_l */
#include "window_file.h"

#include "images/format.h"

#include <locale.h>
#include <math.h>

#define SHOWN 40 /* bytes of a word that a message quotes */
#define MAX_LABEL (1 << 24)

typedef struct scanner {
    const char *at, *end;
    long long line;
    const char *word; /* the last word read, and its end */
    const char *word_end;
    long long image; /* index of the current image */
    fb_error *error;
} scanner;

static int is_space(char c) { /* the characters that C++ streams skip */
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* Reads the next word; returns 0 if there is none. */
static int next_word(scanner *s) {
    for (; s->at < s->end && is_space(*s->at); s->at++) s->line += *s->at == '\n';
    s->word = s->at;
    while (s->at < s->end && !is_space(*s->at)) s->at++;
    s->word_end = s->at;
    return s->word < s->word_end;
}

static int shown(const scanner *s) {
    return s->word_end - s->word > SHOWN ? SHOWN : (int)(s->word_end - s->word);
}

/* Reads the next word. If there is none, the error says that the image's `what` is missing. */
static int need_word(scanner *s, const char *what) {
    if (next_word(s)) return 0;
    return fb_fail(
        s->error,
        "it ends where the %s of image %lld should be: it is truncated, or image %lld has fewer windows than it says",
        what, s->image, s->image);
}

static int fail_at_word(scanner *s, const char *what, const char *why) {
    return fb_fail(s->error, "line %lld: '%.*s' is where the %s of image %lld should be, %s", s->line, shown(s),
                   s->word, what, s->image, why);
}

static int read_int(scanner *s, const char *what, const char *hint, int32_t *value) {
    if (need_word(s, what) != 0) return -1;
    const char *at = s->word;
    const int negative = *at == '-';
    if (*at == '-' || *at == '+') at++;
    int64_t number = 0;
    if (at == s->word_end) return fail_at_word(s, what, hint);
    for (; at < s->word_end; at++) {
        if (!is_digit(*at)) return fail_at_word(s, what, hint);
        if (number < INT64_C(1) << 32) number = number * 10 + (*at - '0');
    }
    if (negative) number = -number;
    if (number < INT32_MIN || number > INT32_MAX) return fail_at_word(s, what, "which is not a 32-bit integer");
    *value = (int32_t)number;
    return 0;
}

/* Accepts what C++ streams accept as a float, with nothing after it. */
static int is_float(const char *at, const char *end) {
    if (at < end && (*at == '-' || *at == '+')) at++;
    int digits = 0;
    for (; at < end && is_digit(*at); at++) digits++;
    if (at < end && *at == '.') {
        for (at++; at < end && is_digit(*at); at++) digits++;
    }
    if (digits == 0) return 0;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '-' || *at == '+')) at++;
        if (at == end) return 0;
        while (at < end && is_digit(*at)) at++;
    }
    return at == end;
}

static int read_overlap(scanner *s, locale_t c_locale, float *value) {
    if (need_word(s, "overlap of a window") != 0) return -1;
    if (!is_float(s->word, s->word_end)) return fail_at_word(s, "overlap of a window", "which is a number such as 0.5");
    *value = strtof_l(s->word, NULL, c_locale); /* rounded once, to float */
    if (isinf(*value)) return fail_at_word(s, "overlap of a window", "which is too large for a float");
    return 0;
}

/* Makes room for one more item. Returns the array, or NULL if memory runs out; the old array stays valid then. */
static void *grown(void *items, size_t count, size_t *room, size_t item_size) {
    if (count < *room) return items;
    const size_t more = *room ? 2 * *room : 64;
    void *larger = count < INT32_MAX ? realloc(items, more * item_size) : NULL;
    if (larger) *room = more;
    return larger;
}

static int keep(scanner *s, fb_window_list *list, const fb_window *window) {
    fb_window *windows = grown(list->windows, list->count, &list->room, sizeof *windows);
    if (windows == NULL) return fb_fail(s->error, "no memory for more than %zu windows", list->count);
    list->windows = windows;
    windows[list->count++] = *window;
    return 0;
}

static int check_window(scanner *s, const fb_window *w, const fb_window_image *image) {
    if (w->x1 > w->x2 || w->y1 > w->y2) {
        return fb_fail(
            s->error,
            "line %d: the window %d %d %d %d (x1 y1 x2 y2) of image %lld is inside out: x1 and y1 are its first "
            "column and row, x2 and y2 the last",
            w->line, w->x1, w->y1, w->x2, w->y2, s->image);
    }
    if (w->x1 < 0 || w->y1 < 0 || w->x2 >= image->width || w->y2 >= image->height) {
        return fb_fail(
            s->error,
            "line %d: the window %d %d %d %d (x1 y1 x2 y2) is not inside of image %lld, which is %d x %d pixels wide "
            "and high according to the list; columns and rows are counted from 0",
            w->line, w->x1, w->y1, w->x2, w->y2, s->image, image->width, image->height);
    }
    return 0;
}

static int read_window(scanner *s, locale_t c_locale, const fb_window_image *image, float foreground, float background,
                       fb_window_file *file) {
    static const char *const number = "which is an integer";
    fb_window w = {.image = (int32_t)s->image};
    float overlap = 0;
    if (read_int(s, "class of a window", "which is an integer; the image has fewer windows than it says", &w.label) !=
        0)
        return -1;
    if (s->line > INT32_MAX) return fb_fail(s->error, "it has more than 2147483647 lines");
    w.line = (int32_t)s->line;
    if (read_overlap(s, c_locale, &overlap) != 0 || read_int(s, "x1 of a window", number, &w.x1) != 0 ||
        read_int(s, "y1 of a window", number, &w.y1) != 0 || read_int(s, "x2 of a window", number, &w.x2) != 0 ||
        read_int(s, "y2 of a window", number, &w.y2) != 0 || check_window(s, &w, image) != 0) {
        return -1;
    }
    if (overlap >= foreground) {
        if (w.label <= 0 || w.label > MAX_LABEL) {
            return fb_fail(
                s->error,
                "line %d: a window of image %lld with overlap %g, so of the foreground, has class %d; classes are 1 to "
                "%d (in Caffe's words: Check failed: label > 0)",
                w.line, s->image, (double)overlap, w.label, MAX_LABEL);
        }
        return keep(s, &file->foreground, &w);
    }
    if (overlap < background) {
        w.label = 0;
        return keep(s, &file->background, &w);
    }
    return 0;
}

static int read_image(scanner *s, locale_t c_locale, float foreground, float background, fb_window_file *file) {
    static const char *const size = "which is an integer, in pixels";
    fb_window_image image = {0};
    int32_t index = 0, channels = 0;
    if (s->word_end - s->word != 1 || *s->word != '#') {
        const char *after = s->image ? " after the windows that the previous image says it has" : "";
        return fb_fail(
            s->error,
            "line %lld: '%.*s' is where # should be, with which each image begins%s (in Caffe's words: Check "
            "failed: hashtag == \"#\")",
            s->line, shown(s), s->word, after);
    }
    if (read_int(s, "index", "which is an integer after # and a space", &index) != 0) return -1;
    if (index != s->image) {
        return fb_fail(
            s->error,
            "line %lld: image %lld has the index %d; indices must be 0, 1, 2, ... in this order, because Caffe finds "
            "images by their position",
            s->line, s->image, index);
    }
    if (need_word(s, "path") != 0) return -1;
    image.path = s->word;
    image.path_size = (size_t)(s->word_end - s->word);
    if (read_int(s, "number of channels", "which is an integer after the path; a path must not contain spaces",
                 &channels) != 0) {
        return -1;
    }
    if (channels != FB_WINDOW_CHANNELS) {
        return fb_fail(
            s->error,
            "line %lld: image %lld has %d channels according to the list; write %d: Caffe reads every image in color",
            s->line, s->image, channels, FB_WINDOW_CHANNELS);
    }
    if (read_int(s, "height", size, &image.height) != 0 || read_int(s, "width", size, &image.width) != 0) return -1;
    if (image.height < 1 || image.width < 1 || image.height > FB_MAX_SIDE || image.width > FB_MAX_SIDE ||
        (int64_t)image.height * image.width > FB_MAX_PIXELS) {
        return fb_fail(
            s->error,
            "line %lld: image %lld is %d x %d pixels wide and high according to the list; sides are 1 to 1048576, "
            "with 1073741824 pixels in all",
            s->line, s->image, image.width, image.height);
    }
    if (read_int(s, "number of windows", "which is an integer", &image.windows) != 0) return -1;
    if (image.windows < 0) {
        return fb_fail(s->error, "line %lld: image %lld has %d windows according to the list", s->line, s->image,
                       image.windows);
    }
    for (int32_t i = 0; i < image.windows; i++) {
        if (read_window(s, c_locale, &image, foreground, background, file) != 0) return -1;
    }
    fb_window_image *images = grown(file->images, file->count, &file->room, sizeof *images);
    if (images == NULL) return fb_fail(s->error, "no memory for more than %zu images", file->count);
    file->images = images;
    images[file->count++] = image;
    return 0;
}

int fb_window_file_read(const char *bytes, size_t size, float foreground, float background, fb_window_file *file,
                        fb_error *error) {
    /* the program's own locale may use a decimal comma */
    const locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (c_locale == (locale_t)0) return fb_fail(error, "no memory");
    scanner s = {.at = bytes, .end = bytes + size, .line = 1, .error = error};
    int code = 0;
    while (code == 0 && next_word(&s)) {
        code = read_image(&s, c_locale, foreground, background, file);
        s.image++;
    }
    freelocale(c_locale);
    if (code == 0 && file->count == 0) return fb_fail(error, "Window file is empty");
    return code;
}

void fb_window_file_free(fb_window_file *file) {
    free(file->images);
    free(file->background.windows);
    free(file->foreground.windows);
    memset(file, 0, sizeof *file);
}
