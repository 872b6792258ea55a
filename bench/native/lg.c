/* lg.c: load generator for chat completions: one thread, one epoll loop, keep-alive connections.
 *
 *   lg -p PORT -k KEY -m MODEL [-P PATH] [-c CONNECTIONS] [-R CONNECTIONS_PER_SECOND]
 *      [-w WARM_SECONDS] [-t SECONDS] | [-n REQUESTS]      a window of time, or a fixed count from the first byte to the last
 *      [-r REQUESTS_PER_SECOND]                            open loop; without it every connection asks again at once
 *      [-b BODY_BYTES] [-S CHUNKS -i MICROSECONDS [-u]]    streams; -u asks for continuous usage
 *
 * stdout: "begin" and "end" at the two edges of the window, so that the reader can take the proxy's CPU time there, then one
 * line of JSON. Every answer is checked: status 200, and for a stream all its chunks and [DONE]; anything else is an error.
 *
 * Time of a request counts from the moment at which it was due. In the open loop that is the schedule, not the moment at which
 * a connection became free, so a stalled proxy cannot hide its stall (coordinated omission). The schedule is a grid of 100 us:
 * waking for each request alone would fill the generator's CPU at 20,000 a second. "first" is the first byte of the body, "end"
 * the last; both for requests due within the window. "requests" and "chunks" are those that arrived within it. "lag" is the age of
 * a chunk when it arrives, by the stamp that the mock puts into it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
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

#define HEAD_BYTES_MAX 8192
#define SAMPLES_MAX 8000000
#define ERRORS_MAX 2000        /* a target this broken is not worth a measurement */
#define QUEUE_MAX (1 << 20)    /* requests that are due and have no connection */
#define TICK_NS 100000ull
#define DRAIN_NS 3000000000ull /* after the window, for what is under way */

enum state { IDLE, SENDING, HEAD, BODY };
enum coding { SIZE, SIZE_LINE, DATA, DATA_LINE, TRAILER };

typedef struct {
  int fd;
  enum state state;
  size_t sent;
  uint64_t due_ns, chunk_at_ns;
  char head[HEAD_BYTES_MAX];
  size_t head_len;
  int status;
  bool chunked, closes, first_seen;
  size_t left;                 /* of the body, or of the current chunk of the coding */
  enum coding coding;
  size_t line_len;
  int quote_seen, digits, done_matched, stamps; /* the scan for stamps and [DONE] */
  uint64_t stamp;
} Conn;

typedef struct { uint32_t *at; size_t n, cap; } Samples; /* units of 10 ns */

static int port, connections = 32, chunks, body_bytes = 1200;
static long pace_us, count;
static double warm_s = 1, window_s = 3, rate, ramp;
static const char *key = "", *model = "m1", *path = "/v1/chat/completions";
static bool ask_usage;

static char *request;
static size_t request_len;
static int epoll_fd, opened;
static Conn *conns;
static int *idle, idle_len;
static uint64_t queue[QUEUE_MAX];
static size_t queue_head, queue_tail;
static Samples first, end, lag;
static uint64_t start_ns, begin_ns, end_ns;
static long started, finished, requests, chunks_seen, errors;
static bool draining;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void add(Samples *s, uint64_t ns) {
  if (s->n == SAMPLES_MAX) return;
  if (s->n == s->cap) s->at = realloc(s->at, (s->cap = s->cap ? 2 * s->cap : 65536) * sizeof *s->at);
  s->at[s->n++] = ns / 10 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 10);
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static double quantile_us(const Samples *s, double q) { return s->at[(size_t)(q * (double)(s->n - 1))] / 100.0; }

static void print_samples(const char *name, Samples *s) {
  if (!s->n) return;
  qsort(s->at, s->n, sizeof *s->at, ascending);
  printf(",\"%s_p50_us\":%.1f,\"%s_p99_us\":%.1f,\"%s_max_us\":%.1f", name, quantile_us(s, .5), name, quantile_us(s, .99), name,
         quantile_us(s, 1));
}

static bool in_window(uint64_t t) { return count || (t >= begin_ns && t < end_ns); }

static void failed(const char *what, int detail, const char *text) {
  if (++errors <= 3) fprintf(stderr, "lg: %s (%d) %.300s\n", what, detail, text);
  if (errors > ERRORS_MAX) { fprintf(stderr, "lg: more than %d errors, giving up\n", ERRORS_MAX); exit(1); }
}

static void watch(int i, int op, uint32_t events) {
  struct epoll_event e = {.events = events, .data.u32 = (uint32_t)i};
  epoll_ctl(epoll_fd, op, conns[i].fd, &e);
}

static void conn_open(int i) {
  int one = 1;
  Conn *c = &conns[i];
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) { perror("lg: socket"); exit(1); }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) { perror("lg: connect"); exit(1); }
  c->state = IDLE;
  watch(i, EPOLL_CTL_ADD, EPOLLIN);
}

static void send_more(int i) {
  Conn *c = &conns[i];
  bool waited = c->state == SENDING;
  ssize_t r = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL);
  if (r > 0) c->sent += (size_t)r;
  /* a broken connection counts as sent: the read side reports it */
  bool complete = c->sent == request_len || (r < 0 && errno != EAGAIN && errno != ENOTCONN);
  c->state = complete ? HEAD : SENDING;
  if (complete == waited) watch(i, EPOLL_CTL_MOD, complete ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

static void ask(int i, uint64_t due_ns) {
  Conn *c = &conns[i];
  c->due_ns = due_ns;
  c->sent = c->head_len = c->line_len = c->left = 0;
  c->first_seen = c->chunked = c->closes = false;
  c->coding = SIZE;
  c->quote_seen = c->digits = c->done_matched = c->stamps = 0;
  c->state = IDLE;
  started++;
  send_more(i);
}

static void next(int i) {
  conns[i].state = IDLE;
  if (rate > 0) {
    if (queue_head < queue_tail && !draining) ask(i, queue[queue_head++ % QUEUE_MAX]);
    else idle[idle_len++] = i;
  } else if (count ? started < count : !draining) {
    ask(i, now_ns());
  }
}

static void reopen(int i) {
  close(conns[i].fd);
  conn_open(i);
  next(i);
}

static void answered(int i, uint64_t t) {
  Conn *c = &conns[i];
  if (c->status != 200) failed("status", c->status, strstr(c->head, "\r\n") ? strstr(c->head, "\r\n") + 2 : "");
  else if (chunks && (c->stamps != chunks || c->done_matched != 6)) failed("stream incomplete, chunks", c->stamps, "");
  finished++;
  if (in_window(t)) requests++;
  if (in_window(c->due_ns)) add(&end, t - c->due_ns);
  if (c->closes) reopen(i);
  else next(i);
}

/* Looks for "T<digits> and [DONE] in the body, whatever way it was cut into reads. */
static void scan(Conn *c, const char *b, size_t n, uint64_t t) {
  static const char done[] = "[DONE]";
  for (size_t k = 0; k < n; k++) {
    char x = b[k];
    if (c->quote_seen == 2 && x >= '0' && x <= '9') {
      c->stamp = c->digits++ ? c->stamp * 10 + (uint64_t)(x - '0') : (uint64_t)(x - '0');
      continue;
    }
    if (c->digits > 8) {
      c->stamps++;
      c->chunk_at_ns = t;
      if (in_window(t)) { chunks_seen++; add(&lag, t > c->stamp ? t - c->stamp : 0); }
    }
    c->digits = 0;
    c->quote_seen = x == '"' ? 1 : c->quote_seen == 1 && x == 'T' ? 2 : 0;
    if (c->done_matched < 6) c->done_matched = x == done[c->done_matched] ? c->done_matched + 1 : x == '[';
  }
}

static void body(Conn *c, const char *b, size_t n, uint64_t t) {
  if (!c->first_seen) {
    c->first_seen = true;
    if (in_window(c->due_ns)) add(&first, t - c->due_ns);
  }
  if (chunks) scan(c, b, n, t);
}

/* True when the message is complete. */
static bool chunked_body(Conn *c, const char *b, size_t n, uint64_t t) {
  for (size_t k = 0; k < n;) {
    if (c->coding == DATA) {
      size_t take = n - k < c->left ? n - k : c->left;
      body(c, b + k, take, t);
      k += take;
      c->left -= take;
      if (c->left == 0) c->coding = DATA_LINE;
      continue;
    }
    char x = b[k++];
    if (c->coding == SIZE && strchr("0123456789abcdefABCDEF", x) && x) {
      c->left = c->left * 16 + (size_t)(x <= '9' ? x - '0' : (x | 32) - 'a' + 10);
    } else if (x != '\n') {
      if (c->coding == SIZE) c->coding = SIZE_LINE;
      if (c->coding == TRAILER && x != '\r') c->line_len++;
    } else if (c->coding == DATA_LINE) {
      c->coding = SIZE;
      c->left = 0;
    } else if (c->coding == TRAILER) {
      if (c->line_len == 0) return true;
      c->line_len = 0;
    } else {
      c->coding = c->left ? DATA : TRAILER;
    }
  }
  return false;
}

static void received(int i, const char *b, size_t n) {
  Conn *c = &conns[i];
  uint64_t t = now_ns();
  if (c->state == IDLE) { failed("bytes on an idle connection", (int)n, ""); reopen(i); return; }
  if (c->state != BODY) {
    size_t before = c->head_len, room = HEAD_BYTES_MAX - 1 - before;
    memcpy(c->head + before, b, n < room ? n : room);
    c->head_len += n < room ? n : room;
    c->head[c->head_len] = 0;
    char *blank = strstr(c->head, "\r\n\r\n");
    if (!blank) {
      if (c->head_len == HEAD_BYTES_MAX - 1) { failed("head too long", (int)n, ""); reopen(i); }
      return;
    }
    size_t head_len = (size_t)(blank - c->head) + 4;
    char kept = *blank;
    *blank = 0;
    c->status = atoi(c->head + 9);
    const char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->chunked = strcasestr(c->head, "\r\ntransfer-encoding:") != NULL;
    c->closes = c->state == SENDING || strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->left = length && !c->chunked ? strtoull(length + 17, NULL, 10) : 0;
    *blank = kept;
    c->state = BODY;
    b += head_len - before;
    n -= head_len - before;
  }
  if (c->chunked) {
    if (chunked_body(c, b, n, t)) answered(i, t);
    return;
  }
  if (n > c->left) n = c->left;
  if (n) body(c, b, n, t);
  c->left -= n;
  if (c->left == 0) answered(i, t);
}

static void readable(int i) {
  static char buffer[1 << 18];
  ssize_t r = recv(conns[i].fd, buffer, sizeof buffer, 0);
  if (r < 0 && errno == EAGAIN) return;
  if (r > 0) { received(i, buffer, (size_t)r); return; }
  bool under_way = conns[i].state != IDLE;
  if (under_way) {
    finished++;
    failed("connection closed in a request, errno", r < 0 ? errno : 0, "");
  }
  close(conns[i].fd);
  conn_open(i);
  if (under_way) next(i);
}

static void build_request(void) {
  static const char text[] = "The quick brown fox jumps over the lazy dog. ";
  char *b = malloc((size_t)body_bytes + 4096), tail[256];
  int n = sprintf(b, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
                     "{\"role\":\"user\",\"content\":\"", model);
  int t = sprintf(tail, "\"}],\"temperature\":0.7,\"max_tokens\":%d", chunks ? chunks : 100);
  if (chunks) t += sprintf(tail + t, ",\"seed\":%ld,\"stream\":true", pace_us);
  if (ask_usage) t += sprintf(tail + t, ",\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}");
  t += sprintf(tail + t, "}");
  for (int k = 0; n + t < body_bytes; k++) b[n++] = text[(size_t)k % (sizeof text - 1)];
  memcpy(b + n, tail, (size_t)t);
  n += t;
  request = malloc((size_t)n + 2048);
  request_len = (size_t)snprintf(request, 2048, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: OpenAI/Python 3.54.0\r\n"
                                 "Accept: application/json\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
                                 "Content-Length: %d\r\n\r\n", path, port, key, n);
  memcpy(request + request_len, b, (size_t)n);
  request_len += (size_t)n;
  free(b);
}

static int alive_streams(void) {
  uint64_t now = now_ns(), old = 3 * (uint64_t)pace_us * 1000ull + 500000000ull;
  int alive = 0;
  for (int i = 0; i < opened; i++) alive += conns[i].state == BODY && now - conns[i].chunk_at_ns < old;
  return alive;
}

static void report(int alive) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  printf("{\"seconds\":%.6f,\"started\":%ld,\"requests\":%ld,\"chunks\":%ld,\"errors\":%ld,\"alive\":%d,\"backlog\":%zu",
         (double)(end_ns - begin_ns) / 1e9, started, requests, chunks_seen, errors, alive, queue_tail - queue_head);
  print_samples("first", &first);
  print_samples("end", &end);
  print_samples("lag", &lag);
  printf(",\"load_cpu_seconds\":%.3f}\n", (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
}

static void parse_arguments(int argc, char **argv) {
  for (int o; (o = getopt(argc, argv, "p:k:m:P:c:R:w:t:n:r:b:S:i:u")) != -1;) switch (o) {
    case 'p': port = atoi(optarg); break;
    case 'k': key = optarg; break;
    case 'm': model = optarg; break;
    case 'P': path = optarg; break;
    case 'c': connections = atoi(optarg); break;
    case 'R': ramp = atof(optarg); break;
    case 'w': warm_s = atof(optarg); break;
    case 't': window_s = atof(optarg); break;
    case 'n': count = atol(optarg); break;
    case 'r': rate = atof(optarg); break;
    case 'b': body_bytes = atoi(optarg); break;
    case 'S': chunks = atoi(optarg); break;
    case 'i': pace_us = atol(optarg); break;
    case 'u': ask_usage = true; break;
    default: exit(2);
  }
}

static void wait_for_events(double ns) {
  static struct epoll_event events[1024];
  struct timespec timeout = {0, ns < 1000 ? 1000 : (long)ns};
  int n = epoll_pwait2(epoll_fd, events, 1024, &timeout, NULL);
  for (int k = 0; k < n; k++) {
    int i = (int)events[k].data.u32;
    if ((events[k].events & EPOLLOUT) && conns[i].state == SENDING) send_more(i);
    if (events[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(i);
  }
}

static uint64_t grid(double due) { return ((uint64_t)due + TICK_NS - 1) / TICK_NS * TICK_NS; }

static double least(double a, double b) { return a < b ? a : b; }

int main(int argc, char **argv) {
  parse_arguments(argc, argv);
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  build_request();
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  conns = calloc((size_t)connections, sizeof *conns);
  idle = malloc(sizeof *idle * (size_t)connections);
  start_ns = now_ns();
  begin_ns = start_ns + (count ? 0 : (uint64_t)(warm_s * 1e9));
  end_ns = begin_ns + (uint64_t)(window_s * 1e9); /* of a fixed count: its deadline */
  double due = (double)start_ns, gap = rate > 0 ? 1e9 / rate : 0;
  bool begun = false;
  for (;;) {
    uint64_t t = now_ns();
    if (!begun && t >= begin_ns) { puts("begin"); fflush(stdout); begun = true; }
    if (t >= end_ns || (count && finished >= count)) break;
    while (opened < connections && (ramp <= 0 || (double)(t - start_ns) * 1e-9 * ramp >= opened)) {
      conn_open(opened);
      next(opened++);
    }
    for (; rate > 0 && grid(due) <= t; due += gap) {
      if (idle_len) ask(idle[--idle_len], grid(due));
      else if (queue_tail - queue_head < QUEUE_MAX) queue[queue_tail++ % QUEUE_MAX] = grid(due);
    }
    double wait = least(opened < connections ? 5e5 : 5e6, (double)end_ns - (double)t);
    wait_for_events(rate > 0 ? least(wait, (double)grid(due) - (double)now_ns()) : wait);
  }
  puts("end");
  fflush(stdout);
  int alive = alive_streams();
  if (count) end_ns = now_ns();
  draining = true; /* nothing new; what is under way may finish, so that the next run starts on a quiet proxy */
  while (finished < started && now_ns() < end_ns + DRAIN_NS && (uint64_t)chunks * (uint64_t)pace_us * 1000ull < DRAIN_NS)
    wait_for_events(5e6);
  report(alive);
  return 0;
}
