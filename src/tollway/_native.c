/* The hot leaves of the request path, in C. Optional: each has a twin in Python of the same contract, and the tests and the fuzzer hold one
   against the other. All lengths come from the network or from the constructor and are checked against the end of the buffer before a byte
   is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "structmember.h"
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define IS_X86 1
#endif

#define HEX_DIGITS_MAX 8
#define TOTAL_DIGITS_MAX 20
#define COUNT_DIGITS_MAX 10

static const char COUNT[] = ",\"completion_tokens\":";
static const char END[] = "}}\n\n";

/* ---- EventTemplate: the twin of tollway.wire.event_template.EventTemplate ------------------------------------------------------------ */

typedef struct {
  PyObject_HEAD
  PyObject *before, *after;
  Py_ssize_t kept;
  long long output, output_most, event_bytes, events;
  int hides_usage;
} EventTemplate;

static int template_init(EventTemplate *self, PyObject *args, PyObject *keywords) {
  static char *names[] = {"before", "after", "kept", "output", "output_most", "hides_usage", NULL};
  PyObject *before, *after;
  Py_ssize_t kept;
  long long output, output_most;
  int hides_usage;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "SSnLLp", names, &before, &after, &kept, &output, &output_most, &hides_usage)) return -1;
  const char *first = PyBytes_AS_STRING(before), *last = PyBytes_AS_STRING(after);
  Py_ssize_t first_size = PyBytes_GET_SIZE(before), last_size = PyBytes_GET_SIZE(after);
  if (!first_size || memchr(first, '\n', (size_t)first_size) || memchr(last, '\n', (size_t)last_size) || !last_size || last[0] != '"' ||
      kept <= 0 || kept > last_size) {
    PyErr_SetString(PyExc_ValueError, "not the parts of an event");
    return -1;
  }
  Py_INCREF(before);
  Py_XSETREF(self->before, before);
  Py_INCREF(after);
  Py_XSETREF(self->after, after);
  self->kept = kept;
  self->output = output;
  self->output_most = output_most;
  self->event_bytes = 0;
  self->events = 0;
  self->hides_usage = hides_usage;
  return 0;
}

static void template_dealloc(EventTemplate *self) {
  Py_XDECREF(self->before);
  Py_XDECREF(self->after);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Whether [text, end) is UTF-8 of printable characters. Returns -1 with an exception set if memory is missing. */
static int is_printable(const char *text, const char *end) {
  PyObject *string = PyUnicode_DecodeUTF8(text, end - text, NULL);
  if (string == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return -1;
    PyErr_Clear();
    return 0;
  }
  int printable = 1, kind = PyUnicode_KIND(string);
  const void *characters = PyUnicode_DATA(string);
  Py_ssize_t length = PyUnicode_GET_LENGTH(string);
  for (Py_ssize_t i = 0; i < length && printable; i++) printable = Py_UNICODE_ISPRINTABLE(PyUnicode_READ(kind, characters, i));
  Py_DECREF(string);
  return printable;
}

/* Where the digits that begin at `at` end: a decimal number without leading zero of at most `most` digits. NULL if there is none. */
static const char *digits_end(const char *at, const char *end, int most) {
  const char *p = at;
  while (p < end && *p >= '0' && *p <= '9' && p - at <= most) p++;
  return p == at || p - at > most || *at == '0' ? NULL : p;
}

static char *put_chunk_head(char *out, Py_ssize_t size) {
  static const char HEX[] = "0123456789abcdef";
  int shift = 4 * (HEX_DIGITS_MAX - 1);
  while (shift && !(size >> shift)) shift -= 4;
  for (; shift >= 0; shift -= 4) *out++ = HEX[size >> shift & 15];
  *out++ = '\r';
  *out++ = '\n';
  return out;
}

static PyObject *template_relay(EventTemplate *self, PyObject *data) {
  if (!PyBytes_Check(data) || self->before == NULL) {
    PyErr_SetString(PyExc_TypeError, "relay takes bytes");
    return NULL;
  }
  const char *at = PyBytes_AS_STRING(data), *stop = at + PyBytes_GET_SIZE(data);
  const char *before = PyBytes_AS_STRING(self->before), *after = PyBytes_AS_STRING(self->after);
  Py_ssize_t before_size = PyBytes_GET_SIZE(self->before), after_size = PyBytes_GET_SIZE(self->after);
  long long output = self->output, event_bytes = 0, events = 0;
  if (at == stop) Py_RETURN_NONE;
  /* What is relayed of a chunk is never longer than the chunk: its head has no leading zero and states the event or less. */
  PyObject *relayed = PyBytes_FromStringAndSize(NULL, stop - at);
  if (relayed == NULL) return NULL;
  char *out = PyBytes_AS_STRING(relayed);
  do {
    Py_ssize_t size = 0;
    const char *head = at;
    for (; at < stop && at - head < HEX_DIGITS_MAX; at++) {
      int c = (unsigned char)*at | 0x20; /* lower case; digits stay as they are */
      if (*at >= '0' && *at <= '9') size = size * 16 + (*at - '0');
      else if (c >= 'a' && c <= 'f') size = size * 16 + (c - 'a' + 10);
      else break;
    }
    if (at == head || *head == '0' || stop - at < 4 || size > stop - at - 4 || at[0] != '\r' || at[1] != '\n') goto irregular;
    const char *event = at + 2, *end = event + size;
    if (end[0] != '\r' || end[1] != '\n') goto irregular;
    at = end + 2;
    if (size < before_size || memcmp(event, before, (size_t)before_size)) goto irregular;
    const char *text = event + before_size, *text_end = text;
    while (text_end < end && *text_end >= 0x20 && *text_end < 0x7f && *text_end != '"' && *text_end != '\\') text_end++;
    if (text_end < end && (unsigned char)*text_end >= 0x80) {
      text_end = memchr(text_end, '"', (size_t)(end - text_end));
      if (text_end == NULL || memchr(text, '\\', (size_t)(text_end - text))) goto irregular;
      int printable = is_printable(text, text_end);
      if (printable < 0) goto failed;
      if (!printable) goto irregular;
    }
    if (end - text_end < after_size || memcmp(text_end, after, (size_t)after_size)) goto irregular;
    const char *total = text_end + after_size, *total_end = digits_end(total, end, TOTAL_DIGITS_MAX);
    if (total_end == NULL || end - total_end < (Py_ssize_t)sizeof COUNT - 1 || memcmp(total_end, COUNT, sizeof COUNT - 1)) goto irregular;
    const char *count = total_end + sizeof COUNT - 1, *count_end = digits_end(count, end, COUNT_DIGITS_MAX);
    if (count_end == NULL || end - count_end != (Py_ssize_t)sizeof END - 1 || memcmp(count_end, END, sizeof END - 1)) goto irregular;
    long long counted = 0;
    for (; count < count_end; count++) counted = counted * 10 + (*count - '0');
    if (counted < output || counted > self->output_most || counted - output > size) goto irregular;
    output = counted;
    event_bytes += size;
    events++;
    Py_ssize_t kept = self->hides_usage ? text_end + self->kept - event : size - 3;
    out = put_chunk_head(out, kept + 3);
    memcpy(out, event, (size_t)kept);
    memcpy(out + kept, "}\n\n\r\n", 5);
    out += kept + 5;
  } while (at < stop);
  if (_PyBytes_Resize(&relayed, out - PyBytes_AS_STRING(relayed)) < 0) return NULL;
  self->output = output;
  self->event_bytes = event_bytes;
  self->events += events;
  return relayed;
irregular:
  Py_DECREF(relayed);
  Py_RETURN_NONE;
failed:
  Py_DECREF(relayed);
  return NULL;
}

static PyMemberDef template_members[] = {{"output", T_LONGLONG, offsetof(EventTemplate, output), 0, NULL},
                                         {"event_bytes", T_LONGLONG, offsetof(EventTemplate, event_bytes), 0, NULL},
                                         {"events", T_LONGLONG, offsetof(EventTemplate, events), 0, NULL},
                                         {NULL}};
static PyMethodDef template_methods[] = {{"relay", (PyCFunction)template_relay, METH_O, NULL}, {NULL}};
static PyTypeObject EventTemplateType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "tollway._native.EventTemplate",
    .tp_basicsize = sizeof(EventTemplate),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)template_init,
    .tp_dealloc = (destructor)template_dealloc,
    .tp_methods = template_methods,
    .tp_members = template_members,
};

/* ---- PlainReader: strict JSON and the check of its fields in one pass. Its twin reads with `tollway.wire.bodies.read` and checks with
   `tollway.gateway.dialects.fields.is_plain`; what that twin would refuse is None here, and so is what few bodies hold. -------------------- */

/* A bytes object ends with a zero byte behind its contents. No rule accepts that byte, so the byte at `end` may be looked at. */
typedef struct {
  const char *at, *end;
  int is_ascii;
} Cursor;

enum { NOTHING = 1, BOOLEAN = 2, INTEGER = 4, NUMBER = 8, TEXT = 16, OBJECT = 32, LIST = 64 };

#define FIELDS_MAX 64
#define MEMBERS_MAX 16
#define BODY_BYTES_MAX (64 * 1024)
#define INTEGER_DIGITS_MAX 18 /* below 2^63 */
#define NUMBER_DIGITS_MAX 17
#define BUCKETS 32

typedef struct {
  PyObject *name;
  const char *text;
  Py_ssize_t size;
  int kinds;
  long long least, most;
  double lowest, highest;
  Py_ssize_t shortest, longest;
  int next; /* the next field of the same bucket, -1 for none */
} Field;

typedef struct {
  PyObject_HEAD
  Field *fields;
  int count, first[BUCKETS];
  uint64_t required;
} PlainReader;

/* Members of objects inside of a body: all but objects, arrays and fractions. */
static const Field MEMBER = {.kinds = NOTHING | BOOLEAN | INTEGER | TEXT, .least = LLONG_MIN, .most = LLONG_MAX, .longest = PY_SSIZE_T_MAX};

static inline int find_bucket(const char *text, Py_ssize_t size) { return (int)(((size_t)size + (unsigned char)text[0]) % BUCKETS); }

static inline void skip_blanks(Cursor *c) {
  while (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r') c->at++;
}

/* Reads a text from behind its first quote to behind its last one; `*is_escaped` if it holds an escape. Returns 0 if it is none, or has
   an escape of half a character of UTF-16. Its UTF-8 is checked with the whole body. */
static int read_text(Cursor *c, const char **text, Py_ssize_t *size, int *is_escaped) {
  const char *p = c->at, *end = c->end;
  *is_escaped = 0;
  for (;;) {
#ifdef IS_X86
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1f);
    for (; end - p >= 16; p += 16) {
      __m128i bytes = _mm_loadu_si128((const __m128i *)p);
      __m128i special = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash));
      special = _mm_or_si128(special, _mm_cmpeq_epi8(_mm_min_epu8(bytes, control), bytes));
      int found = _mm_movemask_epi8(special), before = found ? (found & -found) - 1 : 0xffff;
      if (_mm_movemask_epi8(bytes) & before) c->is_ascii = 0;
      if (found) {
        p += __builtin_ctz((unsigned)found);
        break;
      }
    }
#endif
    for (; p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20; p++)
      if (*p & 0x80) c->is_ascii = 0;
    if (*p != '\\') break;
    *is_escaped = 1;
    p++;
    if (*p == 'u') {
      for (int i = 1; i <= 4; i++)
        if (!Py_ISXDIGIT(p[i])) return 0; /* the zero byte is none, so nothing behind it is looked at */
      if ((p[1] | 0x20) == 'd' && p[2] >= '8') return 0;
      p += 5;
    } else if (*p && strchr("\"\\/bfnrt", *p)) p++;
    else return 0;
  }
  if (*p != '"') return 0;
  *text = c->at;
  *size = p - c->at;
  c->at = p + 1;
  return 1;
}

/* Returns a text as an object; NULL without an exception if it is not UTF-8. */
static PyObject *make_text(const char *text, Py_ssize_t size) {
  PyObject *made = PyUnicode_DecodeUTF8(text, size, NULL);
  if (made == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear();
  return made;
}

static int read_word(Cursor *c, const char *word) {
  size_t size = strlen(word);
  if ((size_t)(c->end - c->at) < size || memcmp(c->at, word, size)) return 0;
  c->at += size;
  return 1;
}

/* Reads a number without an exponent: returns 1 for an integer, 2 for a fraction, which is exact because both of its parts are, and 0
   for any other. */
static int read_number(Cursor *c, long long *integer, double *number) {
  static const double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17};
  const char *p = c->at, *digits, *point;
  int is_negative = *p == '-';
  long long read = 0;
  digits = p += is_negative;
  for (; Py_ISDIGIT(*p); p++) {
    if (p - digits >= INTEGER_DIGITS_MAX) return 0;
    read = read * 10 + (*p - '0');
  }
  if (p == digits || (*digits == '0' && p - digits > 1) || *p == 'e' || *p == 'E') return 0;
  if (*p != '.') {
    if (is_negative && !read) return 0;
    *integer = is_negative ? -read : read;
    c->at = p;
    return 1;
  }
  for (point = ++p; Py_ISDIGIT(*p); p++) {
    if (p - digits > NUMBER_DIGITS_MAX) return 0;
    read = read * 10 + (*p - '0');
  }
  if (p == point || read >= 1LL << 53 || *p == 'e' || *p == 'E') return 0;
  *number = (double)read / POWERS[p - point];
  if (is_negative) *number = -*number;
  c->at = p;
  return 2;
}

/* Reads a value that is neither object nor array, and that the field allows; makes an object of it unless `value` is NULL. Returns 0 if
   it is another one, or has to be unescaped, and -1 with an exception. */
static int read_scalar(Cursor *c, const Field *field, PyObject **value) {
  PyObject *made;
  if (*c->at == '"') {
    const char *text;
    Py_ssize_t size;
    int is_escaped;
    c->at++;
    if (!(field->kinds & TEXT) || !read_text(c, &text, &size, &is_escaped)) return 0;
    if (value == NULL) return 1;
    if (is_escaped) return 0;
    made = make_text(text, size);
    if (made == NULL) return PyErr_Occurred() ? -1 : 0;
    if (PyUnicode_GET_LENGTH(made) < field->shortest || PyUnicode_GET_LENGTH(made) > field->longest) {
      Py_DECREF(made);
      return 0;
    }
    *value = made;
    return 1;
  }
  if (read_word(c, "null")) {
    if (!(field->kinds & NOTHING)) return 0;
    made = Py_NewRef(Py_None);
  } else if (read_word(c, "true")) {
    if (!(field->kinds & BOOLEAN)) return 0;
    made = Py_NewRef(Py_True);
  } else if (read_word(c, "false")) {
    if (!(field->kinds & BOOLEAN)) return 0;
    made = Py_NewRef(Py_False);
  } else {
    long long integer = 0;
    double number = 0;
    int read = read_number(c, &integer, &number);
    if (read == 1 && field->kinds & INTEGER) {
      if (integer < field->least || integer > field->most) return 0;
    } else {
      if (!read || !(field->kinds & NUMBER)) return 0;
      if (read == 1) number = (double)integer;
      if (!(number >= field->lowest && number <= field->highest)) return 0;
    }
    if (value == NULL) return 1;
    made = read == 1 ? PyLong_FromLongLong(integer) : PyFloat_FromDouble(number);
    if (made == NULL) return -1;
  }
  if (value == NULL) Py_DECREF(made);
  else *value = made;
  return 1;
}

/* Reads an object of MEMBERs from its brace on, into the dict `made` unless that is NULL. Returns as `read_scalar` does. */
static int read_object(Cursor *c, PyObject *made) {
  const char *names[MEMBERS_MAX];
  Py_ssize_t sizes[MEMBERS_MAX];
  int count = 0, is_escaped;
  if (*c->at != '{') return 0;
  c->at++;
  skip_blanks(c);
  if (*c->at == '}') {
    c->at++;
    return 1;
  }
  for (;;) {
    if (*c->at != '"' || count == MEMBERS_MAX) return 0;
    c->at++;
    if (!read_text(c, &names[count], &sizes[count], &is_escaped) || is_escaped) return 0;
    for (int i = 0; i < count; i++)
      if (sizes[i] == sizes[count] && !memcmp(names[i], names[count], (size_t)sizes[i])) return 0;
    skip_blanks(c);
    if (*c->at != ':') return 0;
    c->at++;
    skip_blanks(c);
    PyObject *value = NULL;
    int read = read_scalar(c, &MEMBER, made == NULL ? NULL : &value);
    if (read != 1) return read;
    if (made != NULL) {
      PyObject *name = make_text(names[count], sizes[count]);
      int failed = name == NULL || PyDict_SetItem(made, name, value) < 0;
      Py_XDECREF(name);
      Py_DECREF(value);
      if (failed) return PyErr_Occurred() ? -1 : 0;
    }
    count++;
    skip_blanks(c);
    if (*c->at == '}') break;
    if (*c->at != ',') return 0;
    c->at++;
    skip_blanks(c);
  }
  c->at++;
  return 1;
}

/* Reads an array of objects from its bracket on, as many as the field allows, and makes none of them. Returns as `read_scalar` does. */
static int read_list(Cursor *c, const Field *field) {
  Py_ssize_t count = 0;
  c->at++;
  skip_blanks(c);
  if (*c->at != ']') {
    for (;; c->at++) {
      skip_blanks(c);
      int read = read_object(c, NULL);
      if (read != 1) return read;
      count++;
      skip_blanks(c);
      if (*c->at == ']') break;
      if (*c->at != ',') return 0;
    }
  }
  c->at++;
  return count >= field->shortest && count <= field->longest;
}

/* Reads the value of a field. Returns as `read_scalar` does. */
static int read_field(Cursor *c, const Field *field, PyObject **value) {
  int read;
  if (*c->at == '{') {
    if (!(field->kinds & OBJECT)) return 0;
    *value = PyDict_New();
    return *value == NULL ? -1 : read_object(c, *value);
  }
  if (*c->at != '[') return read_scalar(c, field, value);
  if (!(field->kinds & LIST)) return 0;
  read = read_list(c, field);
  if (read != 1) return read;
  *value = PyTuple_New(0);
  return *value == NULL ? -1 : 1;
}

static int read_fields(PlainReader *self, Cursor *c, PyObject *body) {
  uint64_t seen = 0;
  skip_blanks(c);
  if (*c->at != '{') return 0;
  for (;;) {
    const char *text;
    Py_ssize_t size;
    int is_escaped, index;
    c->at++;
    skip_blanks(c);
    if (*c->at != '"') return 0;
    c->at++;
    if (!read_text(c, &text, &size, &is_escaped)) return 0;
    for (index = self->first[find_bucket(text, size)]; index >= 0; index = self->fields[index].next)
      if (self->fields[index].size == size && !memcmp(self->fields[index].text, text, (size_t)size)) break;
    if (index < 0 || seen >> index & 1) return 0;
    seen |= (uint64_t)1 << index;
    skip_blanks(c);
    if (*c->at != ':') return 0;
    c->at++;
    skip_blanks(c);
    PyObject *value = NULL;
    int read = read_field(c, &self->fields[index], &value);
    if (read == 1 && PyDict_SetItem(body, self->fields[index].name, value) < 0) read = -1;
    Py_XDECREF(value);
    if (read != 1) return read;
    skip_blanks(c);
    if (*c->at == '}') break;
    if (*c->at != ',') return 0;
  }
  c->at++;
  skip_blanks(c);
  return c->at == c->end && (seen & self->required) == self->required;
}

static PyObject *plain_read(PlainReader *self, PyObject *data) {
  if (!PyBytes_Check(data) || self->fields == NULL) {
    PyErr_SetString(PyExc_TypeError, "read takes bytes");
    return NULL;
  }
  Py_ssize_t size = PyBytes_GET_SIZE(data);
  if (size > BODY_BYTES_MAX) Py_RETURN_NONE;
  PyObject *body = PyDict_New();
  if (body == NULL) return NULL;
  Cursor c = {PyBytes_AS_STRING(data), PyBytes_AS_STRING(data) + size, 1};
  int read = read_fields(self, &c, body);
  if (read == 1 && !c.is_ascii) {
    PyObject *text = make_text(PyBytes_AS_STRING(data), size);
    read = text != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
    Py_XDECREF(text);
  }
  if (read == 1) return body;
  Py_DECREF(body);
  if (read < 0) return NULL;
  Py_RETURN_NONE;
}

static void release_fields(PlainReader *self) {
  for (int i = 0; i < self->count; i++) Py_XDECREF(self->fields[i].name);
  PyMem_Free(self->fields);
  self->fields = NULL;
  self->count = 0;
}

static int plain_init(PlainReader *self, PyObject *args, PyObject *keywords) {
  static char *names[] = {"fields", NULL};
  PyObject *fields;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!", names, &PyTuple_Type, &fields)) return -1;
  if (self->fields != NULL || PyTuple_GET_SIZE(fields) > FIELDS_MAX) {
    PyErr_SetString(PyExc_ValueError, "not the fields of a body");
    return -1;
  }
  self->fields = PyMem_Calloc(FIELDS_MAX, sizeof(Field));
  if (self->fields == NULL) {
    PyErr_NoMemory();
    return -1;
  }
  for (int i = 0; i < BUCKETS; i++) self->first[i] = -1;
  for (int i = 0; i < PyTuple_GET_SIZE(fields); i++) {
    Field *field = &self->fields[i];
    PyObject *name;
    int is_required;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fields, i), "UiLLddnnp", &name, &field->kinds, &field->least, &field->most, &field->lowest,
                          &field->highest, &field->shortest, &field->longest, &is_required)) {
      release_fields(self);
      return -1;
    }
    field->name = Py_NewRef(name);
    PyUnicode_InternInPlace(&field->name);
    self->count = i + 1;
    field->text = PyUnicode_AsUTF8AndSize(field->name, &field->size);
    if (field->text == NULL) {
      release_fields(self);
      return -1;
    }
    int bucket = find_bucket(field->text, field->size);
    field->next = self->first[bucket];
    self->first[bucket] = i;
    self->required |= (uint64_t)is_required << i;
  }
  return 0;
}

static void plain_dealloc(PlainReader *self) {
  release_fields(self);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef plain_methods[] = {{"read", (PyCFunction)plain_read, METH_O, NULL}, {NULL}};
static PyTypeObject PlainReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "tollway._native.PlainReader",
    .tp_basicsize = sizeof(PlainReader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)plain_init,
    .tp_dealloc = (destructor)plain_dealloc,
    .tp_methods = plain_methods,
};

/* ---- extend: the twin of tollway.wire.segments.extend. Absent where the processor cannot multiply without carries: zlib is faster there. - */

#ifdef IS_X86
#define CHAIN_BYTES 16
#define PLACE_BYTES 8
#define PREFIX_BYTES 8
#define POLYNOMIAL 0xedb88320u

static uint32_t crc_table[256];
static PyObject *empty_hash, *copy_name, *update_name, *digest_name;

/* CRC-32 as zlib computes it. Blocks of 16 bytes are folded into one, which has the same remainder (Gopal et al., "Fast CRC Computation for
   Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009); that one and the rest go through the table. */
__attribute__((target("pclmul"))) static uint32_t find_crc(const unsigned char *at, Py_ssize_t size) {
  unsigned char block[16];
  uint32_t crc = 0xffffffffu;
  if (size >= 16) {
    const __m128i factors = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    __m128i folded = _mm_xor_si128(_mm_loadu_si128((const __m128i *)at), _mm_cvtsi32_si128(-1));
    for (at += 16, size -= 16; size >= 16; at += 16, size -= 16) {
      __m128i low = _mm_clmulepi64_si128(folded, factors, 0x00), high = _mm_clmulepi64_si128(folded, factors, 0x11);
      folded = _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128((const __m128i *)at));
    }
    _mm_storeu_si128((__m128i *)block, folded);
    crc = 0;
    for (int i = 0; i < 16; i++) crc = crc_table[(crc ^ block[i]) & 0xff] ^ crc >> 8;
  }
  for (; size; size--) crc = crc_table[(crc ^ *at++) & 0xff] ^ crc >> 8;
  return ~crc;
}

static PyObject *extend(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  if (count != 3 || !PyBytes_Check(arguments[0]) || PyBytes_GET_SIZE(arguments[0]) != CHAIN_BYTES || !PyLong_Check(arguments[1]) ||
      !PyBytes_Check(arguments[2]) || PyBytes_GET_SIZE(arguments[2]) > UINT32_MAX) {
    PyErr_SetString(PyExc_TypeError, "extend takes a chain value, a number and the bytes of a payload");
    return NULL;
  }
  uint64_t seq = PyLong_AsUnsignedLongLong(arguments[1]);
  if (seq == (uint64_t)-1 && PyErr_Occurred()) return NULL;
  Py_ssize_t size = PyBytes_GET_SIZE(arguments[2]);
  PyObject *made = NULL, *own = NULL, *framed = NULL, *hash = NULL, *ignored = NULL;
  PyObject *hashed = PyBytes_FromStringAndSize(NULL, CHAIN_BYTES + PLACE_BYTES + size);
  if (hashed == NULL) return NULL;
  char *out = PyBytes_AS_STRING(hashed);
  memcpy(out, PyBytes_AS_STRING(arguments[0]), CHAIN_BYTES);
  memcpy(out + CHAIN_BYTES, &seq, PLACE_BYTES); /* this processor is little-endian */
  memcpy(out + CHAIN_BYTES + PLACE_BYTES, PyBytes_AS_STRING(arguments[2]), (size_t)size);
  hash = PyObject_CallMethodNoArgs(empty_hash, copy_name);
  if (hash == NULL) goto done;
  ignored = PyObject_CallMethodOneArg(hash, update_name, hashed);
  if (ignored == NULL) goto done;
  own = PyObject_CallMethodNoArgs(hash, digest_name);
  if (own == NULL) goto done;
  framed = PyBytes_FromStringAndSize(NULL, PREFIX_BYTES + PLACE_BYTES + CHAIN_BYTES + size);
  if (framed == NULL) goto done;
  if (!PyBytes_Check(own) || PyBytes_GET_SIZE(own) != CHAIN_BYTES) {
    PyErr_SetString(PyExc_TypeError, "a digest of another size");
    goto done;
  }
  out = PyBytes_AS_STRING(framed);
  memcpy(out + PREFIX_BYTES, &seq, PLACE_BYTES);
  memcpy(out + PREFIX_BYTES + PLACE_BYTES, PyBytes_AS_STRING(own), CHAIN_BYTES);
  memcpy(out + PREFIX_BYTES + PLACE_BYTES + CHAIN_BYTES, PyBytes_AS_STRING(arguments[2]), (size_t)size);
  uint32_t prefix[2] = {(uint32_t)size, find_crc((unsigned char *)out + PREFIX_BYTES, PLACE_BYTES + CHAIN_BYTES + size)};
  memcpy(out, prefix, PREFIX_BYTES);
  made = PyTuple_Pack(2, own, framed);
done:
  Py_XDECREF(hashed);
  Py_XDECREF(hash);
  Py_XDECREF(ignored);
  Py_XDECREF(own);
  Py_XDECREF(framed);
  return made;
}

static PyMethodDef extend_method = {"extend", (PyCFunction)(void (*)(void))extend, METH_FASTCALL, NULL};

/* Adds `extend` to the module if the processor can run it. Returns -1 with an exception. */
static int add_extend(PyObject *module) {
  if (!__builtin_cpu_supports("pclmul")) return 0;
  for (uint32_t i = 0; i < 256; i++) {
    crc_table[i] = i;
    for (int bit = 0; bit < 8; bit++) crc_table[i] = (crc_table[i] & 1 ? POLYNOMIAL : 0) ^ crc_table[i] >> 1;
  }
  PyObject *hashlib = PyImport_ImportModule("hashlib");
  PyObject *new_hash = hashlib == NULL ? NULL : PyObject_GetAttrString(hashlib, "blake2b");
  PyObject *arguments = PyTuple_New(0), *keywords = Py_BuildValue("{si}", "digest_size", CHAIN_BYTES);
  if (new_hash != NULL && arguments != NULL && keywords != NULL) empty_hash = PyObject_Call(new_hash, arguments, keywords);
  Py_XDECREF(hashlib);
  Py_XDECREF(new_hash);
  Py_XDECREF(arguments);
  Py_XDECREF(keywords);
  copy_name = PyUnicode_InternFromString("copy");
  update_name = PyUnicode_InternFromString("update");
  digest_name = PyUnicode_InternFromString("digest");
  if (empty_hash == NULL || copy_name == NULL || update_name == NULL || digest_name == NULL) return -1;
  PyObject *function = PyCFunction_New(&extend_method, NULL);
  int added = function == NULL ? -1 : PyModule_AddObjectRef(module, "extend", function);
  Py_XDECREF(function);
  return added;
}
#else
static int add_extend(PyObject *module) { return 0; }
#endif

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tollway._native", NULL, -1, NULL};

PyMODINIT_FUNC PyInit__native(void) {
  if (PyType_Ready(&EventTemplateType) < 0 || PyType_Ready(&PlainReaderType) < 0) return NULL;
  PyObject *made = PyModule_Create(&module);
  if (made == NULL) return NULL;
  if (PyModule_AddObjectRef(made, "EventTemplate", (PyObject *)&EventTemplateType) < 0 ||
      PyModule_AddObjectRef(made, "PlainReader", (PyObject *)&PlainReaderType) < 0 || add_extend(made) < 0)
    Py_CLEAR(made);
  return made;
}
