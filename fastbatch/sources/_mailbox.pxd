"""native/mailbox.h, through which a loader asks the workers of a `PythonSource`, for Cython."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from fastbatch._contract cimport fb_progress

cdef extern from "mailbox.h" nogil:
    enum:
        FB_MAX_CAUSE

        FB_MAX_QUESTIONS
        FB_START_SECONDS

        FB_MAILBOX_ROOM

        FB_FIELD_ALIGNMENT

    ctypedef struct fb_question:
        uint64_t index
        uint64_t epoch
        uint64_t seed
        uint32_t file
        int64_t offsets[16]
        int32_t dtypes[16]
        int64_t row

    ctypedef struct fb_mailbox:
        uint32_t asked
        uint32_t made
        uint32_t ready
        fb_question questions[32]
        int64_t shapes[16][8]
        int64_t busy
        int64_t cpu
        char text[512]
        uint32_t cause_size
        char cause[65000]

    ctypedef enum fb_answer:
        FB_ANSWER_MADE
        FB_ANSWER_FAILED
        FB_ANSWER_DIED
        FB_ANSWER_ABSENT
        FB_ANSWER_LATE
        FB_ANSWER_STOPPED

    ctypedef struct fb_peer:
        int socket
        int process_file

    int fb_process_file(int process) noexcept
    fb_answer fb_mailbox_ask(fb_mailbox *mailbox, const fb_peer *peer, const int32_t *stop, int64_t timeout,
                             uint32_t *made, fb_progress *progress) noexcept
    void fb_mailbox_quit(fb_mailbox *mailbox) noexcept
    bint fb_wait_for_end(const fb_peer *peer, int milliseconds) noexcept
    int fb_send_file(int socket, int file) noexcept
    int fb_mailbox_listen(fb_mailbox *mailbox, int milliseconds) noexcept
    bint fb_mailbox_made(fb_mailbox *mailbox) noexcept
    void fb_mailbox_failed(fb_mailbox *mailbox) noexcept
    int fb_end_with(int process, int socket) noexcept
