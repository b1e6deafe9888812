// A stand-in for NVIDIA's driver library: as much of it as src/gpu/cuda.rs calls, on the host's memory.
//
// It shows mistakes that a GPU may hide. Work is put off as long as the driver may put it off: nothing is copied or run
// before somebody waits for it. Calls without a current context, waiting on a stream that is being captured, binaries that
// are none and times of events that do not measure are errors, as they are in the documentation. Of kernels it knows those
// of kernels/convert.cu for f32. FAKE_CUDA_VERSION, FAKE_CUDA_DEVICES, FAKE_CUDA_CAPABILITY, FAKE_CUDA_LOADS_NOTHING and
// FAKE_CUDA_INIT, which is what cuInit answers, change what it is.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
  NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, INVALID_CLUSTER_SIZE = 912,
};
enum { COPY, SET, KERNEL, EVENT, WAIT };
enum { DEVICES = 16, MEMORY = 64 << 20 };

struct event { int measures, is_recorded, is_done; double time; struct stream *stream; uint64_t count; };
struct parameters { uint64_t bytes[3]; };
struct work {
  int kind;
  void *to;
  const void *from;
  uint64_t bytes;
  unsigned char byte;
  const char *kernel;
  struct parameters parameters;
  struct event *event;
  // Of a wait: the stream, and how much of it has to be done.
  struct stream *other;
  uint64_t count;
};
struct list { struct work *items; size_t count, room; };
struct context { int device; uint64_t used; int fault; };
// What was given to a stream, and done of it, is counted.
struct stream { struct context *context; struct list waiting, captured; uint64_t given, done; int is_capturing, is_draining; };
struct module { struct context *context; };

static struct context contexts[DEVICES];
static _Thread_local struct context *current;
static double now;
static int device_count(void) { const char *n = getenv("FAKE_CUDA_DEVICES"); return n ? atoi(n) : 12; }

#define ENTER() if (!current) return INVALID_CONTEXT; if (current->fault) return current->fault

static void push(struct list *list, struct work work) {
  if (list->count == list->room) list->items = realloc(list->items, sizeof work * (list->room = 2 * list->room + 8));
  list->items[list->count++] = work;
}

static int submit(struct stream *stream, struct work work) {
  if (stream->context != current) return INVALID_HANDLE;
  stream->given += !stream->is_capturing;
  push(stream->is_capturing ? &stream->captured : &stream->waiting, work);
  return OK;
}

static int drain(struct stream *stream, size_t count);

static int run(struct work *work) {
  switch (work->kind) {
    case WAIT: return work->other->done >= work->count ? OK : drain(work->other, work->count - work->other->done);
    case COPY: memmove(work->to, work->from, work->bytes); return OK;
    case SET: memset(work->to, work->byte, work->bytes); return OK;
    case EVENT: work->event->is_done = 1; work->event->time = now += 1.5; return OK;
  }
  uint64_t *p = work->parameters.bytes;
  if (p[0] < 4096) return ILLEGAL_ADDRESS;
  float *x = (float *)p[0];
  if (strcmp(work->kernel, "fill_f32") == 0) {
    float value;
    memcpy(&value, &p[2], sizeof value);
    for (uint64_t i = 0; i < p[1]; ++i) x[i] = value;
  } else {
    memmove((float *)p[1], x, 4 * p[2]);
  }
  return OK;
}

// Runs the first `count` of what waits.
static int drain(struct stream *stream, size_t count) {
  struct list *waiting = &stream->waiting;
  // Streams that wait for each other would wait for ever.
  if (stream->is_draining) abort();
  stream->is_draining = 1;
  for (size_t i = 0; i < count && !stream->context->fault; ++i) {
    int fault = run(&waiting->items[i]);
    if (!stream->context->fault) stream->context->fault = fault;
    ++stream->done;
  }
  stream->is_draining = 0;
  memmove(waiting->items, waiting->items + count, (waiting->count - count) * sizeof *waiting->items);
  waiting->count -= count;
  return stream->context->fault;
}

static int drain_all(struct stream *stream) {
  return stream->is_capturing ? CAPTURE_UNSUPPORTED : drain(stream, stream->waiting.count);
}

// Of each device two: that of the work is made first.
static struct stream *streams[DEVICES][2];

int cuInit(unsigned flags) {
  const char *named = getenv("FAKE_CUDA_INIT");
  return named ? atoi(named) : device_count() == 0 ? NO_DEVICE : flags == 0 ? OK : INVALID_VALUE;
}
int cuDriverGetVersion(int *version) {
  const char *named = getenv("FAKE_CUDA_VERSION");
  *version = named ? atoi(named) : 13000;
  return OK;
}
// What libnvrtc asks when it compiles: it opens `libcuda.so.1` too, and crashes where this function is missing.
int cuGetExportTable(const void **table, const void *id) { (void)id; *table = NULL; return NOT_FOUND; }
int cuGetErrorName(int code, const char **name) {
  *name = code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : code == INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE"
          : code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
          : code == NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED"
                                  : NULL;
  return *name ? OK : INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
  *text = code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : NULL;
  return *text ? OK : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) { *count = device_count(); return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return index < device_count() ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int bytes, int device) { (void)device; strncpy(name, "Stand-in", bytes); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = MEMORY; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  const char *named = getenv("FAKE_CUDA_CAPABILITY");
  // A list is of the first devices'; the last of it is that of all others.
  while (named && device-- > 0 && strchr(named, ',')) named = strchr(named, ',') + 1;
  const int capability = named ? atoi(named) : 90;
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 16 ? 4 : -1;
  return OK;
}
int cuDevicePrimaryCtxRetain(struct context **context, int device) {
  *context = &contexts[device];
  contexts[device].device = device;
  return OK;
}
int cuCtxSetCurrent(struct context *context) { current = context; return OK; }

int cuStreamCreate(struct stream **stream, unsigned flags) {
  ENTER();
  *stream = calloc(1, sizeof **stream);
  (*stream)->context = current;
  streams[current->device][streams[current->device][0] != NULL] = *stream;
  return flags == 1 ? OK : INVALID_VALUE;
}
int cuStreamSynchronize(struct stream *stream) { ENTER(); return drain_all(stream); }
int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
  ENTER();
  // One that was never recorded is no reason to wait.
  if (flags || !event->is_recorded) return INVALID_VALUE;
  return submit(stream, (struct work){.kind = WAIT, .other = event->stream, .count = event->count});
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  ENTER();
  if (current->used + bytes > MEMORY) return OUT_OF_MEMORY;
  uint64_t *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
  memory[0] = bytes;
  current->used += bytes;
  *address = (uint64_t)memory + 256;
  return OK;
}
int cuMemFree_v2(uint64_t address) {
  ENTER();
  for (int i = 0; i < 2; ++i) drain_all(streams[current->device][i]);
  uint64_t *memory = (uint64_t *)(address - 256);
  current->used -= memory[0];
  free(memory);
  return OK;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  ENTER();
  *free = MEMORY - current->used;
  *total = MEMORY;
  return OK;
}
int cuMemAllocHost_v2(void **memory, size_t bytes) { ENTER(); *memory = malloc(bytes); return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, struct stream *stream) {
  ENTER();
  return submit(stream, (struct work){.kind = COPY, .to = (void *)to, .from = from, .bytes = bytes});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, struct stream *stream) {
  ENTER();
  return submit(stream, (struct work){.kind = COPY, .to = to, .from = (void *)from, .bytes = bytes});
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, struct stream *stream) {
  return cuMemcpyHtoDAsync_v2(to, (void *)from, bytes, stream);
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, struct stream *stream) {
  ENTER();
  return submit(stream, (struct work){.kind = SET, .to = (void *)to, .byte = byte, .bytes = bytes});
}

int cuEventCreate(struct event **event, unsigned flags) {
  ENTER();
  *event = calloc(1, sizeof **event);
  (*event)->measures = flags == 0;
  return OK;
}
int cuEventRecord(struct event *event, struct stream *stream) {
  ENTER();
  event->is_recorded = 1;
  event->is_done = 0;
  event->stream = stream;
  event->count = stream->given + 1;
  return submit(stream, (struct work){.kind = EVENT, .event = event});
}
int cuEventSynchronize(struct event *event) {
  ENTER();
  // An event that was recorded twice is where it was recorded last.
  struct stream *stream = event->stream;
  size_t count = stream->waiting.count;
  while (count > 0 && stream->waiting.items[count - 1].event != event) --count;
  return drain(stream, count);
}
int cuEventElapsedTime(float *milliseconds, struct event *from, struct event *to) {
  ENTER();
  if (!from->measures || !to->measures || !from->is_recorded || !to->is_recorded) return INVALID_HANDLE;
  if (!from->is_done || !to->is_done) return 600;
  *milliseconds = to->time - from->time;
  return OK;
}

int cuModuleLoadData(struct module **module, const void *image) {
  ENTER();
  if (memcmp(image, "\177ELF", 4) != 0 || getenv("FAKE_CUDA_LOADS_NOTHING")) return INVALID_IMAGE;
  *module = malloc(sizeof **module);
  (*module)->context = current;
  return OK;
}
// A function has the shared memory that it was allowed: what is not asked for is 48 KiB, more than 227 no block has.
// What of a processor's memory is shared while it runs, somebody has to have said: in percent.
struct function { const char *name; int dynamic_shared, carve_out; };
int cuModuleGetFunction(struct function **function, struct module *module, const char *name) {
  ENTER();
  static const char *const known[] = {"fill_f32", "to_f32_f32", "from_f32_f32"};
  static struct function functions[DEVICES][3];
  if (module->context != current) return INVALID_HANDLE;
  for (unsigned i = 0; i < 3; ++i) {
    if (strcmp(known[i], name) != 0) continue;
    *function = &functions[current->device][i];
    **function = (struct function){known[i], 48 << 10, -1};
    return OK;
  }
  return NOT_FOUND;
}
int cuFuncSetAttribute(struct function *function, int attribute, int value) {
  ENTER();
  if (attribute == 9 && value >= 0 && value <= 100) {
    function->carve_out = value;
    return OK;
  }
  if (attribute != 8 || value < 0 || value > 227 << 10) return INVALID_VALUE;
  function->dynamic_shared = value;
  return OK;
}
struct attribute { int id; char padding[4]; union { char bytes[64]; struct { unsigned x, y, z; } cluster; } value; };
struct configuration {
  unsigned x, y, z, threads, threads_y, threads_z, shared;
  struct stream *stream;
  const struct attribute *attributes;
  unsigned count;
};
int cuLaunchKernelEx(const struct configuration *c, struct function *function, void **parameters, void **extra) {
  ENTER();
  if (!c->x || c->y - 1 > 65534 || c->z - 1 > 65534 || c->threads - 1 > 1023 || c->threads_y != 1 || c->threads_z != 1 || extra)
    return INVALID_VALUE;
  if (c->shared > (unsigned)function->dynamic_shared || function->carve_out < 0) return INVALID_VALUE;
  for (unsigned i = 0; i < c->count; ++i) {
    const struct attribute *a = &c->attributes[i];
    int capability;
    cuDeviceGetAttribute(&capability, 75, current->device);
    if (a->id != 4 || capability < 9) return INVALID_VALUE;
    const unsigned x = a->value.cluster.x, y = a->value.cluster.y, z = a->value.cluster.z;
    if (!x || !y || !z || c->x % x || c->y % y || c->z % z || x * y * z > 8) return INVALID_CLUSTER_SIZE;
  }
  struct work work = {.kind = KERNEL, .kernel = function->name};
  memcpy(&work.parameters, parameters[0], sizeof work.parameters);
  return submit(c->stream, work);
}

// A tensor map holds the arguments, for tests to read: what it is of and how, the address, four sizes, three strides, numbers and lines of a
// copy, element strides, and two corners. What the documentation forbids is refused.
static int encode(uint64_t *map, int kind, int type, unsigned rank, void *address, const uint64_t *sizes, const uint64_t *strides,
                  unsigned numbers, unsigned lines, const unsigned *element_strides, int interleave, int swizzle, int l2, int fill) {
  ENTER();
  int capability;
  cuDeviceGetAttribute(&capability, 75, current->device);
  if (capability < 9) return NOT_SUPPORTED;
  // 16 bits (float or bfloat), no interleave, and then a swizzle of 128 bytes for no more than these.
  if ((type != 6 && type != 9) || interleave != 0 || swizzle != 3 || numbers * 2 > 128 || numbers * 2 % 16) return INVALID_VALUE;
  if ((uint64_t)map % 64 || !address || (uint64_t)address % 16 || !lines || l2 > 3 || fill > 1) return INVALID_VALUE;
  memset(map, 0, 128);
  map[0] = kind | type << 8 | rank << 16 | (uint64_t)swizzle << 24 | (uint64_t)l2 << 32 | (uint64_t)fill << 40;
  map[1] = (uint64_t)address;
  for (unsigned i = 0; i < rank; ++i) {
    if (!sizes[i] || sizes[i] > 1ull << 32 || !element_strides[i] || element_strides[i] > 8) return INVALID_VALUE;
    map[2 + i] = sizes[i];
    map[10] |= (uint64_t)element_strides[i] << 16 * i;
  }
  for (unsigned i = 0; i + 1 < rank; ++i) {
    if (strides[i] % 16 || strides[i] >= 1ull << 40) return INVALID_VALUE;
    map[6 + i] = strides[i];
  }
  map[9] = numbers | (uint64_t)lines << 32;
  return OK;
}
int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *sizes, const uint64_t *strides,
                           const unsigned *box, const unsigned *element_strides, int interleave, int swizzle, int l2, int fill) {
  if (rank != 2 || box[1] > 256) return INVALID_VALUE;
  return encode(map, 1, type, rank, address, sizes, strides, box[0], box[1], element_strides, interleave, swizzle, l2, fill);
}
int cuTensorMapEncodeIm2col(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *sizes, const uint64_t *strides,
                            const int *lower, const int *upper, unsigned channels, unsigned pixels, const unsigned *element_strides,
                            int interleave, int swizzle, int l2, int fill) {
  if (rank != 4 || channels > 256 || pixels > 1024) return INVALID_VALUE;
  for (int i = 0; i < 2; ++i)
    if (lower[i] < -128 || lower[i] > 127 || upper[i] < -128 || upper[i] > 127) return INVALID_VALUE;
  const int code = encode(map, 2, type, rank, address, sizes, strides, channels, pixels, element_strides, interleave, swizzle, l2, fill);
  if (code != OK) return code;
  map[11] = (unsigned)lower[0] | (uint64_t)(unsigned)lower[1] << 32;
  map[12] = (unsigned)upper[0] | (uint64_t)(unsigned)upper[1] << 32;
  return OK;
}

int cuStreamBeginCapture_v2(struct stream *stream, int mode) {
  ENTER();
  if (stream->is_capturing || mode != 2) return INVALID_VALUE;
  stream->is_capturing = 1;
  return OK;
}
int cuStreamEndCapture(struct stream *stream, struct list **graph) {
  ENTER();
  if (!stream->is_capturing) return INVALID_VALUE;
  *graph = malloc(sizeof **graph);
  **graph = stream->captured;
  stream->captured = (struct list){0};
  stream->is_capturing = 0;
  return OK;
}
int cuGraphInstantiateWithFlags(struct list **ready, struct list *graph, unsigned long long flags) {
  ENTER();
  *ready = calloc(1, sizeof **ready);
  for (size_t i = 0; i < graph->count; ++i) push(*ready, graph->items[i]);
  return flags == 0 ? OK : INVALID_VALUE;
}
int cuGraphDestroy(struct list *graph) { ENTER(); free(graph->items); free(graph); return OK; }
int cuGraphLaunch(struct list *ready, struct stream *stream) {
  ENTER();
  for (size_t i = 0; i < ready->count; ++i) submit(stream, ready->items[i]);
  return OK;
}
int cuGraphExecDestroy(struct list *ready) { ENTER(); free(ready->items); free(ready); return OK; }
