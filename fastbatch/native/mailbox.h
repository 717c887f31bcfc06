/* A mailbox in memory that two processes (or two threads) share: one asks for samples, the other one makes them.
 *
 * The asking thread waits without the GIL. So does the answering one, until it has something to do. Both can ask and
 * answer for several samples at a time, because it takes longer to wake a process than to make a small sample. */
#ifndef FASTBATCH_MAILBOX_H
#define FASTBATCH_MAILBOX_H

#include <stddef.h>
#include <stdint.h>

#include "fastbatch.h"

#define FB_MAX_CAUSE 65000 /* bytes of a pickled exception */
#define FB_MAX_QUESTIONS 32
#define FB_START_SECONDS 60 /* for imports and for unpickling, beside the timeout of a sample */
/* The mailbox's part of the file that it lies in: a multiple of every page size up to 4096, and of 64. A sample for
 * which the file has room follows: its fields one after the other, each at a multiple of FB_FIELD_ALIGNMENT. */
#define FB_MAILBOX_ROOM 81920
#define FB_FIELD_ALIGNMENT 64

/* What is to be made. */
typedef struct fb_question {
    uint64_t index; /* the sample, ... */
    uint64_t epoch;
    uint64_t seed;
    uint32_t file; /* ... and where it belongs: in which of the files that the other process was sent, ... */
    int64_t offsets[FB_MAX_FIELDS]; /* ... and where in that file, ... */
    int32_t dtypes[FB_MAX_FIELDS];  /* ... as which fb_dtype */
    int64_t row;                    /* tells the rows of a file apart: the offset of a field that is not empty */
} fb_question;

/* The questions and the answers. All zero at first. */
typedef struct fb_mailbox {
    uint32_t state; /* atomic, and a futex: see mailbox.c */
    uint32_t quit;  /* atomic: the answering side is to leave */
    uint32_t asked; /* questions, which are answered in turn */
    uint32_t made;  /* atomic: samples made so far */
    uint32_t ready; /* atomic: the answering side has listened */
    fb_question questions[FB_MAX_QUESTIONS];
    /* Of the sample that follows the mailbox, if shapes vary: as the answering side says them. */
    int64_t shapes[FB_MAX_FIELDS][FB_MAX_DIMS];
    int64_t begin, busy;    /* nanoseconds: when the answering side began, and how long it took for the last answers */
    int64_t cpu_begin, cpu; /* the same in processor time */
    char text[512]; /* why there is no sample for question `made`, if there is none; later ones are not answered */
    uint32_t cause_size;
    char cause[FB_MAX_CAUSE]; /* the pickled exception */
} fb_mailbox;

_Static_assert(sizeof(fb_mailbox) <= FB_MAILBOX_ROOM, "FB_MAILBOX_ROOM is too small");

/* What became of the question after those that were answered. */
typedef enum fb_answer {
    FB_ANSWER_MADE, /* there is none: all samples were made */
    FB_ANSWER_FAILED,
    FB_ANSWER_DIED,   /* the other side ended while it made the sample */
    FB_ANSWER_ABSENT, /* the other side had ended before: the sample can be asked for elsewhere */
    FB_ANSWER_LATE,   /* not made within the timeout; the other process may still be at it */
    FB_ANSWER_STOPPED /* nobody waits for the samples any more; the other process may still be at it */
} fb_answer;

typedef struct fb_peer { /* the other side */
    int socket;          /* a connection, which tells of its end unless a third process holds that side too */
    int process_file;    /* from fb_process_file(): tells of its end in any case. -1: there is none */
} fb_peer;

/* A file that tells of a process's end; -1 if the kernel has none (Linux 5.3), or the process has ended already. */
int fb_process_file(int process);

/* For the asking side. Sends the questions and waits for the answers. timeout: nanoseconds for a sample; 0 for none. If
 * the other side has never listened yet, it has FB_START_SECONDS more. stop: see fb_stopping(). Sets *made to the number
 * of samples made; it is less than `asked`, unless all were made. Meanwhile, *progress says which one is being made. */
fb_answer fb_mailbox_ask(fb_mailbox *mailbox, const fb_peer *peer, const int32_t *stop, int64_t timeout, uint32_t *made,
                         fb_progress *progress);
void fb_mailbox_quit(fb_mailbox *mailbox);
/* Waits up to so many milliseconds for the other side to end. Returns whether it has. */
int fb_wait_for_end(const fb_peer *peer, int milliseconds);
/* Sends a file descriptor. Returns 0, or -1 with errno. */
int fb_send_file(int socket, int file);

/* For the answering side. Waits up to so many milliseconds for questions: 1; nothing came: 0; it is to leave: -1. */
int fb_mailbox_listen(fb_mailbox *mailbox, int milliseconds);
/* The next sample was made. Returns whether there is another one to be made now. */
int fb_mailbox_made(fb_mailbox *mailbox);
/* The next sample cannot be made, for the reasons that the mailbox has. */
void fb_mailbox_failed(fb_mailbox *mailbox);
/* Starts a thread that ends this process as soon as that one has ended, by whatever means, or has become another program
 * and closed the other end of the socket. Called once in a process. Returns 0, or an errno. */
int fb_end_with(int process, int socket);

#endif
