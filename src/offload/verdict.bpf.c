// Echoes small WebSocket messages within the kernel: a stream verdict program, which runs for each
// packet of the sockets in `sockets`, in the order of the stream and with the socket locked, so that
// only one run at a time writes a socket's record.
//
// It echoes a packet that is exactly one whole, final, masked text or binary frame without RSV bits, and
// text only if it is ASCII. Everything else is passed up to user space unchanged. Nothing is echoed
// before everything earlier is answered: `passed` counts the bytes passed up, `answered` those that user
// space has answered, and while the two differ, everything is passed up. The program sends a notice for
// what it passes up, unless user space has not taken the last one. Both sides write their own count and
// then read the other's, with full barriers in between, so that one of them sees the other's write
// (Dekker): either user space, having taken a notice, finds more to read, or the program finds that it
// must send another notice.
//
// The bytes that user space has not received yet are bounded. Beyond the bound the connection is given
// up, and so it is if the bytes of a packet that came before cannot be taken off it.
//
// record.rs declares `record` too. Built by scripts/offload-object.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// The longest payload that is echoed here, in bytes. It bounds the loop over the payload, for the
// verifier.
#ifndef PAYLOAD_BYTES_MAX
#define PAYLOAD_BYTES_MAX 16384
#endif

// How many bytes may be in flight to the peer, echo included, for a frame to be echoed. Redirected
// packets are charged to no socket, so without this limit a peer that never reads could take any amount
// of memory. It is well below any send buffer, so that the kernel's worker never waits for room.
#define FLIGHT_BYTES_MAX (32 << 10)

// How much may wait to be received by user space, in addition to what receive buffers hold, before the
// connection is given up: the bytes of the packets, and for each packet PACKET_BYTES, which is the least
// that its bookkeeping takes. The kernel charges what is passed up to the receive buffer, which stops the
// peer; but if echoes are queued before it, not until its worker has moved it there.
#define UNRECEIVED_BYTES_MAX (32 << 20)
#define PACKET_BYTES 512

// The kernel counts a redirected packet as consumed with the length that it has at the end, which is 4
// bytes less than what was received. Once the difference reached 2^31 bytes it would look negative, and
// the socket would never be readable again. Before that, echoing ends and user space takes over.
#define ECHOED_FRAMES_MAX (1ULL << 28)

// How many bytes the kernel takes off a packet at a time, and how often this program asks for that. TCP sends
// no packet that is longer than the two together.
#define PULL_BYTES_MAX 4095
#define PULLS_MAX 20

#define SOCKETS_MAX 1024 // replaced when the program is loaded
#define NOTICES_BYTES (64 << 10) // likewise
#define CLOSED (~0ULL)

#define FIN 0x80
#define TEXT 0x1
#define BINARY 0x2
#define MASKED 0x80
#define LENGTH_16 126
#define NOT_ASCII 0x8080808080808080ULL

struct record {
    // Written by this program.
    __u64 begun;         // runs begun
    __u64 done;          // runs done
    __u64 passed;        // bytes passed up
    __u64 notices;       // notices sent
    __u64 echoed_frames; // frames echoed,
    __u64 echoed_out;    // and the bytes of the echoes
    __u64 cleared;       // a value of `sent` up to which all bytes were seen in the send queue
    __u64 echoed_at_ns;  // when the last frame was echoed, on CLOCK_MONOTONIC
    // Written by user space.
    __u64 answered;      // bytes answered, of those passed up; or CLOSED
    __u64 sent;          // bytes to be sent since the connection began, answers included, echoes not
    __u64 notices_taken;
    __u64 received;      // bytes received, of those passed up
    __u64 unused[4];
    // Written by this program when it passes something up.
    __u64 marked;        // an earlier value of `passed`,
    __u64 weight;        // what was passed up since then,
    __u64 weight_before; // and at most what was not received before then, in bytes
    __u64 overrun;       // 1 when the connection is given up
    __u64 sequence;      // of the byte after the last packet
} __attribute__((aligned(64)));

struct {
    __uint(type, BPF_MAP_TYPE_SOCKMAP);
    __uint(max_entries, SOCKETS_MAX);
    __type(key, __u32);
    __type(value, __u32);
} sockets SEC(".maps");

// From a socket's cookie to its index in `sockets` and `records`.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, SOCKETS_MAX);
    __type(key, __u64);
    __type(value, __u32);
} slots SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, SOCKETS_MAX);
    __type(key, __u32);
    __type(value, struct record);
} records SEC(".maps");

// What is echoed on all sockets.
struct totals {
    __u64 frames;
    __u64 bytes_in;
    __u64 bytes_out;
} __attribute__((aligned(64)));

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct totals);
} totals SEC(".maps");

// Slots for which something was passed up.
struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, NOTICES_BYTES);
} notices SEC(".maps");

// Fields of the kernel's own structures; their offsets are filled in when the program is loaded.
struct tcp_sock {
    __u64 bytes_acked;
    __u32 snd_una;
    __u32 write_seq;
    __u32 copied_seq;
} __attribute__((preserve_access_index));

struct sock {
    __s32 sk_rcvbuf;
} __attribute__((preserve_access_index));

static __always_inline struct tcp_sock *tcp_of(struct __sk_buff *skb)
{
    void *socket = skb->sk;
    return socket ? bpf_skc_to_tcp_sock(socket) : 0;
}

// A full barrier on every architecture, because the returned value is used.
static __always_inline __u64 fetch_add(__u64 *count, __u64 amount)
{
    __u64 before = __sync_fetch_and_add(count, amount);
    asm volatile("" ::"r"(before));
    return before;
}

static __always_inline __u64 load(const __u64 *count)
{
    return *(const volatile __u64 *)count;
}

// Reads a count of user space that it has written before another one, of which `later` was read. A processor may read
// ahead of a branch, but not ahead of the address to read from, which depends on `later` here.
static __always_inline __u64 load_after(__u64 later, const __u64 *count)
{
    asm volatile("%0 &= 0" : "+r"(later));
    return load((const void *)count + later);
}

// The next two functions are not static, so that the verifier checks each once for any arguments, and not
// again on every path to a call, which would take most of the time of loading.

// Unmasks at most 63 bytes of the packet, from the byte `from` on. Returns all of them or-ed together.
__attribute__((noinline)) __u64 unmask_rest(struct __sk_buff *skb, __u32 from, __u32 count, __u32 key)
{
    __u8 *byte = (void *)(long)skb->data + (from & 0x7fff), *end = (void *)(long)skb->data_end;
    __u64 key64 = key | (__u64)key << 32, seen = 0;

#pragma clang loop unroll(disable)
    for (__u32 word = 0; word < 7; word++) {
        if (count < 8 || byte + 8 > end)
            break;
        seen |= *(__u64 *)byte ^= key64;
        byte += 8;
        count -= 8;
    }
    if (count & 4 && byte + 4 <= end) {
        seen |= *(__u32 *)byte ^= key;
        byte += 4;
    }
    if (count & 2 && byte + 2 <= end) {
        seen |= *(__u16 *)byte ^= key;
        byte += 2;
        key >>= 16;
    }
    if (count & 1 && byte + 1 <= end)
        seen |= *byte ^= key;
    return seen;
}

// Unmasks `count` bytes of the packet from the byte `from` on, or masks them again. Returns everything
// that it wrote, or-ed together in words, halves and bytes.
__attribute__((noinline)) __u64 unmask(struct __sk_buff *skb, __u32 from, __u32 count, __u32 key)
{
    __u8 *byte = (void *)(long)skb->data + (from & 15), *end = (void *)(long)skb->data_end;
    __u64 key64 = key | (__u64)key << 32, seen = 0;

#pragma clang loop unroll(disable)
    for (__u32 block = 0; block < PAYLOAD_BYTES_MAX / 64; block++) {
        if (count < 64 || byte + 64 > end)
            break;
        __u64 *word = (void *)byte;
#pragma clang loop unroll(full)
        for (__u32 i = 0; i < 8; i++)
            seen |= word[i] ^= key64;
        byte += 64;
        from += 64;
        count -= 64;
    }
    return seen | unmask_rest(skb, from, count, key);
}

// Turns the packet into its echo, if it is a frame to be echoed and `sent` bytes of user space leave before it. Returns
// the length of the echo, or 0 if the packet is unchanged.
static __always_inline __u32 echo(struct __sk_buff *skb, struct record *record, __u64 sent)
{
    __u32 length = skb->len, payload, header;
    if (length < 6 || length > 8 + PAYLOAD_BYTES_MAX || record->echoed_frames >= ECHOED_FRAMES_MAX)
        return 0;

    struct tcp_sock *tcp = tcp_of(skb);
    if (!tcp)
        return 0;
    // Signed, because an acknowledged SYN or FIN counts as a byte.
    __u64 due = sent + record->echoed_out;
    __s64 flight = due + length - 4 - tcp->bytes_acked;
    if (flight > FLIGHT_BYTES_MAX)
        return 0;
    // User space opens the gate when its answers are about to be sent, and they must leave first. No
    // earlier echo is waiting now: what is answered was passed up only after the echoes before it.
    if (record->cleared != sent) {
        __s64 missing = due - tcp->bytes_acked - (__u32)(tcp->write_seq - tcp->snd_una);
        if (missing > 0)
            return 0;
        record->cleared = sent;
    }

    __u8 head[4];
    if (bpf_skb_load_bytes(skb, 0, head, sizeof head))
        return 0;
    __u8 first = head[0], second = head[1];
    if ((first != (FIN | TEXT) && first != (FIN | BINARY)) || !(second & MASKED))
        return 0;
    payload = second & ~MASKED;
    header = 6;
    if (payload >= LENGTH_16) {
        if (payload != LENGTH_16)
            return 0;
        header = 8;
        payload = head[2] << 8 | head[3];
        if (payload < LENGTH_16)
            return 0;
    }
    if (payload > PAYLOAD_BYTES_MAX || payload + header != length)
        return 0;

    // Copies the packet, unless it is in one piece already.
    if (bpf_skb_pull_data(skb, length))
        return 0;
    __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    __u32 key;
    if (header == 6 && data + 6 <= end)
        key = *(__u32 *)(data + 2);
    else if (header == 8 && data + 8 <= end)
        key = *(__u32 *)(data + 4);
    else
        return 0;
    __u64 seen = unmask(skb, header, payload, key);
    if (first == (FIN | TEXT) && seen & NOT_ASCII) {
        unmask(skb, header, payload, key);
        return 0;
    }

    // The reply's header has no key, is 4 bytes shorter, and ends where the payload begins.
    data = (void *)(long)skb->data;
    end = (void *)(long)skb->data_end;
    if (data + 8 > end) {
        // The payload is empty or one byte long.
        if (data + 6 > end)
            return 0;
        data[4] = first;
        data[5] = payload;
    } else if (header == 6) {
        data[4] = first;
        data[5] = payload;
    } else {
        data[4] = first;
        data[5] = LENGTH_16;
        data[6] = payload >> 8;
        data[7] = payload;
    }
    return length - 4;
}

// Takes off the beginning of a packet what was read before, and returns how many bytes are left, or -1 if that
// is impossible.
//
// TCP queues a packet whole although its first bytes have come before, because it was sent again and joined
// with new data on the way, and a reader skips them by their sequence numbers. A packet of which user space has
// received the first part lies there whole, too. The kernel shows both to this program as they are.
static __always_inline __s64 drop_repeated(struct __sk_buff *skb, struct record *record, int is_first)
{
    // Where TCP keeps the sequence numbers of the first byte and of the one after the last, a FIN included.
    __u32 begin = skb->cb[0], end = skb->cb[1], length = skb->len;
    if (end - begin - length > 1)
        return -1;
    __u32 expected = record->sequence;
    if (is_first) {
        struct tcp_sock *tcp = tcp_of(skb);
        if (!tcp)
            return -1;
        expected = tcp->copied_seq;
    }
    record->sequence = end;
    __s32 repeated = expected - begin;
    if (repeated <= 0)
        return length;
    if ((__u32)repeated >= length)
        return 0;
#pragma clang loop unroll(disable)
    for (__u32 pull = 0; pull < PULLS_MAX; pull++) {
        __s32 part = repeated < PULL_BYTES_MAX ? repeated : PULL_BYTES_MAX;
        if (bpf_skb_adjust_room(skb, -part, 0, 0))
            return -1;
        repeated -= part;
        if (!repeated)
            return skb->len;
    }
    return -1;
}

// Whether too much waits to be received by user space.
static __always_inline int is_overrun(struct __sk_buff *skb, struct record *record, __u32 length)
{
    if (record->overrun)
        return 1;
    // Everything from before the mark is received; what was passed since then may not be. Sets a new mark.
    __u64 received = load(&record->received);
    if (received >= record->marked) {
        record->weight_before = received == record->passed ? 0 : record->weight;
        record->weight = 0;
        record->marked = record->passed;
    }
    record->weight += length + PACKET_BYTES;
    __u64 unreceived = record->weight_before + record->weight;
    if (unreceived <= UNRECEIVED_BYTES_MAX)
        return 0;
    struct tcp_sock *tcp = tcp_of(skb);
    if (!tcp)
        return 0;
    // Twice, because what was counted before the mark may have been received by now.
    __u64 buffer = ((struct sock *)tcp)->sk_rcvbuf;
    record->overrun = unreceived > UNRECEIVED_BYTES_MAX + 2 * buffer;
    return record->overrun;
}

// Passes a packet up, or drops it if too much waits to be received, and says so in the record. A dropped
// packet counts as passed, so the gate never opens again.
static __always_inline int pass(struct __sk_buff *skb, struct record *record, __u32 length, __u32 slot)
{
    int verdict = is_overrun(skb, record, length) ? SK_DROP : SK_PASS;
    fetch_add(&record->passed, length);
    if (load(&record->notices_taken) != record->notices)
        return verdict;
    // A slot has at most one notice that is not taken, and the ring has room for one of every slot.
    record->notices++;
    if (bpf_ringbuf_output(&notices, &slot, sizeof slot, BPF_RB_FORCE_WAKEUP))
        record->notices--;
    return verdict;
}

SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff *skb)
{
    __u32 length = skb->len;
    // Only a FIN, which the socket has seen already. If it were passed up while an echo is queued, the
    // kernel would take the empty packet for a send that failed, and break the socket.
    if (!length)
        return SK_DROP;
    __u64 cookie = bpf_get_socket_cookie(skb);
    __u32 *found = bpf_map_lookup_elem(&slots, &cookie);
    if (!found)
        return SK_PASS;
    __u32 slot = *found, only = 0;
    struct record *record = bpf_map_lookup_elem(&records, &slot);
    struct totals *total = bpf_map_lookup_elem(&totals, &only);
    if (!record || !total)
        return SK_PASS;

    int verdict = SK_PASS;
    int is_first = fetch_add(&record->begun, 1) == 0;
    __s64 fresh = drop_repeated(skb, record, is_first);
    if (!fresh) {
        fetch_add(&record->done, 1);
        return SK_DROP;
    }
    if (fresh < 0)
        record->overrun = 1;
    else
        length = fresh;
    __u32 echoed = 0;
    __u64 answered = load(&record->answered);
    if (fresh > 0 && answered == record->passed)
        echoed = echo(skb, record, load_after(answered, &record->sent));
    if (echoed) {
        record->echoed_frames++;
        record->echoed_out += echoed;
        record->echoed_at_ns = bpf_ktime_get_coarse_ns();
        // Runs for other sockets count here too.
        __sync_fetch_and_add(&total->frames, 1);
        __sync_fetch_and_add(&total->bytes_in, length);
        __sync_fetch_and_add(&total->bytes_out, echoed);
        // This drops the first 4 bytes, which are known to exist.
        verdict = bpf_skb_adjust_room(skb, -4, 0, 0) ? SK_DROP : bpf_sk_redirect_map(skb, &sockets, slot, 0);
    } else {
        verdict = pass(skb, record, length, slot);
    }
    fetch_add(&record->done, 1);
    return verdict;
}

// Only programs under the GPL may read the kernel's structures. The kernel does not know the string
// `MIT OR Apache-2.0` as compatible with it, but it knows this one.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
