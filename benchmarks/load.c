/* A closed-loop HTTP/1.1 client: each of N connections has one request under way, always the same one.
 *
 *     load HOST PORT REQUEST CLIENTS SECONDS WARMUP TEXT FEWEST LONGEST
 *
 * HOST is an IPv4 address; REQUEST is a file with the whole request, head and body. Answers that end after WARMUP
 * seconds and within SECONDS more are counted; while good ones are fewer than FEWEST, the window goes on, up to LONGEST
 * seconds. An answer is good when its status is 200 and its body holds TEXT. The time of a request
 * runs from its first byte out to its last byte in, a new connection included where the server closed the old one.
 *
 * Prints one JSON object: counts, requests/s, and exact percentiles in milliseconds (nearest rank, nothing is binned).
 * One thread and epoll: it shares the cores with what it measures, so it says what it took of them itself.
 * It knows nothing of TLS, pipelining, trailers or redirects.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, TICK_MS = 20, PAUSE_US = 1000, FIRST_CAPACITY = 1 << 16, READ_AT_LEAST = 1 << 12 };

struct client {
    int fd;           /* -1: not connected */
    bool reused;      /* an answer came on this connection before */
    bool watched_out; /* waiting for room to write */
    size_t sent;
    double started;   /* seconds; when its request was begun */
    char *answer;
    size_t length, capacity;
};

struct answer {
    int status;
    const char *body;
    size_t length;
    bool closes; /* the server will not take another request on this connection */
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static char *request;
static size_t request_length;
static int watch;

static double *times; /* seconds, of the good answers counted */
static size_t good, times_capacity;
static long wrong_status, wrong_text, broken;
static char complaint[201]; /* the first wrong answer, printable */

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double processor_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void *grown(void *memory, size_t size) {
    if (!(memory = realloc(memory, size))) die("memory");
    return memory;
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    size_t capacity = FIRST_CAPACITY, read;
    request = grown(NULL, capacity);
    while ((read = fread(request + request_length, 1, capacity - request_length, file)) > 0)
        if ((request_length += read) == capacity) request = grown(request, capacity *= 2);
    fclose(file);
}

static void watch_for(struct client *client, int operation, bool room_to_write) {
    struct epoll_event event = {.events = EPOLLIN | (room_to_write ? EPOLLOUT : 0), .data.ptr = client};
    client->watched_out = room_to_write;
    if (epoll_ctl(watch, operation, client->fd, &event)) die("epoll_ctl");
}

static void disconnect(struct client *client) {
    if (client->fd >= 0) close(client->fd); /* which also ends watching it */
    client->fd = -1;
}

static void connect_client(struct client *client) {
    int yes = 1;
    if ((client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0) die("socket");
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    connect(client->fd, (struct sockaddr *)&server, sizeof server); /* what goes wrong shows when it is written to */
    client->reused = false;
    client->sent = 0;
    client->length = 0;
    watch_for(client, EPOLL_CTL_ADD, true);
}

/* False: the connection is broken. */
static bool write_request(struct client *client) {
    while (client->sent < request_length) {
        ssize_t sent = send(client->fd, request + client->sent, request_length - client->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) {
            if (!client->watched_out) watch_for(client, EPOLL_CTL_MOD, true);
            return true;
        }
        if (sent < 0) return false;
        client->sent += (size_t)sent;
    }
    if (client->watched_out) watch_for(client, EPOLL_CTL_MOD, false);
    return true;
}

static void begin(struct client *client) {
    client->started = now();
    client->sent = 0;
    client->length = 0;
    if (client->fd < 0) connect_client(client);
    else if (!write_request(client)) disconnect(client), connect_client(client);
}

/* Whether the answer is whole. `ended`: the server closed the connection, and no more will come. */
static bool whole(struct client *client, bool ended, struct answer *answer) {
    client->answer[client->length] = 0;
    char *blank = memmem(client->answer, client->length, "\r\n\r\n", 4);
    if (!blank || sscanf(client->answer, "HTTP/1.%*d %d", &answer->status) != 1) return false;
    blank[2] = 0; /* so that searches for headers end here */
    const char *length = strcasestr(client->answer, "\r\ncontent-length:");
    const char *chunked = strcasestr(client->answer, "\r\ntransfer-encoding: chunked");
    bool old = !memcmp(client->answer, "HTTP/1.0", 8);
    answer->closes = ended || strcasestr(client->answer, "\r\nconnection: close") ||
                     (old && !strcasestr(client->answer, "\r\nconnection: keep-alive"));
    blank[2] = '\r';
    answer->body = blank + 4;
    answer->length = client->length - (size_t)(answer->body - client->answer);
    if (chunked) /* one request at a time: nothing follows the last chunk */
        return answer->length >= 5 && !memcmp(client->answer + client->length - 5, "0\r\n\r\n", 5);
    return length ? answer->length >= strtoul(length + 17, NULL, 10) : ended;
}

static void complain(const struct answer *answer) {
    if (complaint[0]) return;
    size_t length = answer->length < sizeof complaint - 5 ? answer->length : sizeof complaint - 5;
    int head = snprintf(complaint, sizeof complaint, "%d ", answer->status);
    for (size_t i = 0; i < length; i++) {
        char c = answer->body[i];
        complaint[(size_t)head + i] = (c < ' ' || c > '~' || c == '"' || c == '\\') ? ' ' : c;
    }
    complaint[(size_t)head + length] = 0;
}

static void count(const struct client *client, const struct answer *answer, const char *text, bool counting) {
    bool status_right = answer->status == 200;
    bool right = status_right && memmem(answer->body, answer->length, text, strlen(text));
    if (!right) {
        complain(answer);
        usleep(PAUSE_US); /* a server that only refuses must not be flooded */
    }
    if (!counting) return;
    if (!right) {
        wrong_status += !status_right;
        wrong_text += status_right;
        return;
    }
    if (good == times_capacity) {
        times_capacity = 2 * times_capacity + FIRST_CAPACITY;
        times = grown(times, times_capacity * sizeof *times);
    }
    times[good++] = now() - client->started;
}

/* Take what has come. False: the connection broke before the answer was whole. */
static bool read_answer(struct client *client, const char *text, bool counting) {
    struct answer answer = {0};
    for (;;) {
        if (client->capacity < client->length + READ_AT_LEAST + 1)
            client->answer = grown(client->answer, client->capacity = 2 * client->capacity + FIRST_CAPACITY);
        ssize_t got = recv(client->fd, client->answer + client->length, client->capacity - client->length - 1, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return true;
        if (got > 0) client->length += (size_t)got;
        if (whole(client, got <= 0, &answer)) break;
        if (got <= 0) return false;
    }
    count(client, &answer, text, counting);
    if (answer.closes) disconnect(client);
    client->reused = true;
    begin(client);
    return true;
}

static void lost(struct client *client, bool counting) {
    double started = client->started;
    bool idle_end = client->reused && client->length == 0; /* a server may close a connection between two requests */
    if (!idle_end) {
        broken += counting;
        usleep(PAUSE_US);
    }
    disconnect(client);
    connect_client(client);
    client->started = started;
}

static int ascending(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double percentile_ms(double share) {
    if (!good) return 0;
    size_t rank = (size_t)ceil(share * (double)good);
    return 1e3 * times[rank ? rank - 1 : 0];
}

int main(int arguments, char **argument) {
    if (arguments != 10) {
        fprintf(stderr, "usage: load HOST PORT REQUEST CLIENTS SECONDS WARMUP TEXT FEWEST LONGEST\n");
        return 2;
    }
    server.sin_port = htons((uint16_t)atoi(argument[2]));
    if (inet_pton(AF_INET, argument[1], &server.sin_addr) != 1) die(argument[1]);
    read_request(argument[3]);
    size_t clients = strtoul(argument[4], NULL, 10), fewest = strtoul(argument[8], NULL, 10);
    double seconds = atof(argument[5]), warmup = atof(argument[6]), longest = atof(argument[9]);
    const char *text = argument[7];

    if ((watch = epoll_create1(0)) < 0) die("epoll_create1");
    struct client *client = calloc(clients, sizeof *client);
    if (!client) die("memory");
    for (size_t i = 0; i < clients; i++) client[i].fd = -1, begin(&client[i]);

    double begun = now() + warmup, used = processor_seconds(), time;
    bool counting = false;
    while ((time = now() - begun) < seconds || (good < fewest && time < longest)) {
        if (!counting && time >= 0) counting = true, used = processor_seconds();
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(watch, events, EVENTS, TICK_MS);
        for (int i = 0; i < ready; i++) {
            struct client *one = events[i].data.ptr;
            bool in = events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR);
            bool well = !(events[i].events & EPOLLOUT) || write_request(one) || in; /* it may have answered already */
            if (well && in) well = read_answer(one, text, counting);
            if (!well) lost(one, counting);
        }
    }
    double elapsed = now() - begun;
    qsort(times, good, sizeof *times, ascending);
    printf("{\"clients\": %zu, \"good\": %zu, \"seconds\": %.3f, \"per_second\": %.2f, "
           "\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"wrong_status\": %ld, \"wrong_text\": %ld, \"broken\": %ld, "
           "\"cores\": %.3f, \"complaint\": \"%s\"}\n",
           clients, good, elapsed, (double)good / elapsed, percentile_ms(0.5), percentile_ms(0.99),
           wrong_status, wrong_text, broken, (processor_seconds() - used) / elapsed, complaint);
    return 0;
}
