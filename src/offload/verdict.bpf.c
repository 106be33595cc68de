// Echoes small WebSocket messages within the kernel: a stream verdict, run for each packet of the
// sockets in `sockets`, in the order of the stream and with the socket locked, so that one run at a
// time writes a socket's record.
//
// Echoed is a packet that is exactly one whole, final, masked text or binary frame without RSV bits,
// text only where it is ASCII. All else goes to user space as it came. Nothing is echoed before
// everything earlier has been answered: `passed` counts what went up, `answered` what user space has
// answered of it, and while they differ all goes up. For what goes up a notice is sent, unless there is
// one that user space has not taken. Both sides write their own count and then read the other's, with
// full barriers between, so that one of them sees the other (Dekker): either user space, having taken a
// notice, finds more to read, or the program finds that it must send another.
//
// What user space has still to receive is bounded: beyond the bound the connection is given up.
//
// `record` has a twin in record.rs. Built by scripts/offload-object.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// The largest payload that is echoed here, in octets. The loop over it is bounded for the verifier.
#ifndef PAYLOAD_BYTES_MAX
#define PAYLOAD_BYTES_MAX 16384
#endif

// What may be on its way to the peer, not yet acknowledged, when a frame is echoed, in octets. What is
// redirected is charged to no socket, so that without this a peer that never reads would have memory
// taken without end. It is well below any send buffer, so that the kernel's worker is not held up.
#define FLIGHT_BYTES_MAX (32 << 10)

// What user space may have to receive, beside what receive buffers hold, before the connection is given
// up: the octets of packets, and for each packet PACKET_BYTES, which its bookkeeping takes at least. The
// kernel charges what is passed up to the receive buffer and so stops the peer, but not before its
// worker has moved it there, when echoes stand before it.
#define UNRECEIVED_BYTES_MAX (32 << 20)
#define PACKET_BYTES 512

// The kernel takes a redirected packet for consumed by the length that it has at the end, which is 4
// octets short of what was received. At 2^31 octets the difference would look negative, and the socket
// never readable again. A connection that has been echoed so often is user space's from then on.
#define ECHOED_FRAMES_MAX (1ULL << 28)

#define SOCKETS_MAX 1024 // replaced when it is loaded
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
    __u64 passed;        // octets passed up
    __u64 notices;       // sent
    __u64 echoed_frames; // frames echoed,
    __u64 echoed_out;    // and their octets as sent
    __u64 cleared;       // the value of `sent` of which all was found to be in the send queue
    __u64 echoed_at_ns;  // CLOCK_MONOTONIC, when the last was
    // Written by user space.
    __u64 answered;      // octets of those passed up that are answered, or CLOSED
    __u64 sent;          // octets to be sent from the first on, echoes not counted; with the answers
    __u64 notices_taken;
    __u64 received;      // octets of those passed up that are received
    __u64 unused[4];
    // Written by this program, when something is passed up.
    __u64 marked;        // a value of `passed`,
    __u64 weight;        // what was passed up since then,
    __u64 weight_before; // and what of the rest may not be received yet, in octets
    __u64 overrun;       // 1 when the connection is given up
} __attribute__((aligned(64)));

struct {
    __uint(type, BPF_MAP_TYPE_SOCKMAP);
    __uint(max_entries, SOCKETS_MAX);
    __type(key, __u32);
    __type(value, __u32);
} sockets SEC(".maps");

// From a socket's cookie to its place in `sockets` and `records`.
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
    __u64 octets_in;
    __u64 octets_out;
} __attribute__((aligned(64)));

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct totals);
} totals SEC(".maps");

// Slots for which something went up.
struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, NOTICES_BYTES);
} notices SEC(".maps");

// What is needed of the kernel's own; the places of these are found when the program is loaded.
struct tcp_sock {
    __u64 bytes_acked;
    __u32 snd_una;
    __u32 write_seq;
} __attribute__((preserve_access_index));

struct sock {
    __s32 sk_rcvbuf;
} __attribute__((preserve_access_index));

static __always_inline struct tcp_sock *tcp_of(struct __sk_buff *skb)
{
    void *socket = skb->sk;
    return socket ? bpf_skc_to_tcp_sock(socket) : 0;
}

// A full barrier, on every processor, because the value is used.
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

// The next two are not static, so that the verifier looks at each once, for any arguments, and not again
// on every path that comes to a call: that is most of what loading takes.

// Unmasks at most 63 octets from the octet `from` of the packet on. Gives all of them or-ed together.
__attribute__((noinline)) __u64 unmask_rest(struct __sk_buff *skb, __u32 from, __u32 count, __u32 key)
{
    __u8 *octet = (void *)(long)skb->data + (from & 0x7fff), *end = (void *)(long)skb->data_end;
    __u64 key64 = key | (__u64)key << 32, seen = 0;

#pragma clang loop unroll(disable)
    for (__u32 word = 0; word < 7; word++) {
        if (count < 8 || octet + 8 > end)
            break;
        seen |= *(__u64 *)octet ^= key64;
        octet += 8;
        count -= 8;
    }
    if (count & 4 && octet + 4 <= end) {
        seen |= *(__u32 *)octet ^= key;
        octet += 4;
    }
    if (count & 2 && octet + 2 <= end) {
        seen |= *(__u16 *)octet ^= key;
        octet += 2;
        key >>= 16;
    }
    if (count & 1 && octet + 1 <= end)
        seen |= *octet ^= key;
    return seen;
}

// Unmasks `count` octets from the octet `from` of the packet on, or masks them again. Gives all of what
// it wrote or-ed together, in no order.
__attribute__((noinline)) __u64 unmask(struct __sk_buff *skb, __u32 from, __u32 count, __u32 key)
{
    __u8 *octet = (void *)(long)skb->data + (from & 15), *end = (void *)(long)skb->data_end;
    __u64 key64 = key | (__u64)key << 32, seen = 0;

#pragma clang loop unroll(disable)
    for (__u32 block = 0; block < PAYLOAD_BYTES_MAX / 64; block++) {
        if (count < 64 || octet + 64 > end)
            break;
        __u64 *word = (void *)octet;
#pragma clang loop unroll(full)
        for (__u32 i = 0; i < 8; i++)
            seen |= word[i] ^= key64;
        octet += 64;
        from += 64;
        count -= 64;
    }
    return seen | unmask_rest(skb, from, count, key);
}

// Turns the packet into its echo, if it is a frame to be echoed. Gives the octets of the echo, or 0 when
// the packet is as it was.
static __always_inline __u32 echo(struct __sk_buff *skb, struct record *record)
{
    __u32 length = skb->len, payload, header;
    if (length < 6 || length > 8 + PAYLOAD_BYTES_MAX || record->echoed_frames >= ECHOED_FRAMES_MAX)
        return 0;

    struct tcp_sock *tcp = tcp_of(skb);
    if (!tcp)
        return 0;
    // Signed: an acknowledged FIN or SYN counts as an octet.
    __u64 sent = load(&record->sent), due = sent + record->echoed_out;
    __s64 flight = due + length - 4 - tcp->bytes_acked;
    if (flight > FLIGHT_BYTES_MAX)
        return 0;
    // User space opens the gate when its answers are about to be sent. They come first; no echo waits
    // now, for what was answered had waited behind them.
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

    // Copies it, unless it stands in one piece already.
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

    // The reply's header is 4 octets shorter, for want of a key, and ends where the payload begins.
    data = (void *)(long)skb->data;
    end = (void *)(long)skb->data_end;
    if (data + 8 > end) {
        // An empty payload, or one octet.
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

// Whether user space has too much to receive already.
static __always_inline int is_overrun(struct __sk_buff *skb, struct record *record, __u32 length)
{
    if (record->overrun)
        return 1;
    // All from before the mark is received. What was passed since may not be, and a new mark is set.
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
    // Twice, because what was counted before the mark may be received by now.
    __u64 buffer = ((struct sock *)tcp)->sk_rcvbuf;
    record->overrun = unreceived > UNRECEIVED_BYTES_MAX + 2 * buffer;
    return record->overrun;
}

// Passes a packet up, or drops it when user space has too much already, which it is told. What is dropped
// counts as passed: the gate never opens again.
static __always_inline int pass(struct __sk_buff *skb, struct record *record, __u32 length, __u32 slot)
{
    int verdict = is_overrun(skb, record, length) ? SK_DROP : SK_PASS;
    fetch_add(&record->passed, length);
    if (load(&record->notices_taken) != record->notices)
        return verdict;
    // A slot has at most one notice that is not taken, and the ring has room for one of each.
    record->notices++;
    if (bpf_ringbuf_output(&notices, &slot, sizeof slot, BPF_RB_FORCE_WAKEUP))
        record->notices--;
    return verdict;
}

SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff *skb)
{
    __u32 length = skb->len;
    // A FIN alone. The socket knows of it already; and behind an echo that is still to be sent, the
    // kernel would take an empty packet that goes up for a send that has failed, and break the socket.
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
    fetch_add(&record->begun, 1);
    __u32 echoed = 0;
    if (load(&record->answered) == record->passed)
        echoed = echo(skb, record);
    if (echoed) {
        record->echoed_frames++;
        record->echoed_out += echoed;
        record->echoed_at_ns = bpf_ktime_get_coarse_ns();
        // Other sockets' runs count here too.
        __sync_fetch_and_add(&total->frames, 1);
        __sync_fetch_and_add(&total->octets_in, length);
        __sync_fetch_and_add(&total->octets_out, echoed);
        // Four octets that are known to be there can be dropped.
        verdict = bpf_skb_adjust_room(skb, -4, 0, 0) ? SK_DROP : bpf_sk_redirect_map(skb, &sockets, slot, 0);
    } else {
        verdict = pass(skb, record, length, slot);
    }
    fetch_add(&record->done, 1);
    return verdict;
}

// Reading the kernel's own structures is for programs under the GPL; `MIT OR Apache-2.0` is none of the
// strings that the kernel takes for compatible with it, this one is.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
