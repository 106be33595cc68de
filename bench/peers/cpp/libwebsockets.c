// Echoes messages with libwebsockets: one thread, its own poll loop, nothing compressed. The library
// hands over a message in parts; each part is sent on as a frame of the same message, as in its own
// minimal echo example. Up to PARTS parts wait; beyond that the connection is not read.
//
// `libwebsockets PORT`

#include <libwebsockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 1024, PART_BYTES = 64 * 1024 };

struct part {
    unsigned char *bytes;
    size_t length;
    char is_first, is_last, is_binary;
};

struct connection {
    struct lws_ring *parts;
    int is_stopped;
};

static void part_destroy(void *part) { free(((struct part *)part)->bytes); }

static int send_part(struct lws *wsi, struct connection *connection) {
    const struct part *part = lws_ring_get_element(connection->parts, NULL);
    if (!part) return 0;
    const int opcode = part->is_binary ? LWS_WRITE_BINARY : LWS_WRITE_TEXT;
    const int flags = lws_write_ws_flags(opcode, part->is_first, part->is_last);
    if (lws_write(wsi, part->bytes + LWS_PRE, part->length, flags) < (int)part->length) return -1;
    lws_ring_consume(connection->parts, NULL, NULL, 1);
    if (connection->is_stopped && lws_ring_get_count_free_elements(connection->parts) > PARTS / 2) {
        connection->is_stopped = 0;
        lws_rx_flow_control(wsi, 1);
    }
    if (lws_ring_get_count_waiting_elements(connection->parts, NULL)) lws_callback_on_writable(wsi);
    return 0;
}

static int keep_part(struct lws *wsi, struct connection *connection, const void *bytes, size_t length) {
    struct part part = {malloc(LWS_PRE + length), length, lws_is_first_fragment(wsi), lws_is_final_fragment(wsi),
                        lws_frame_is_binary(wsi)};
    if (!part.bytes) return -1;
    memcpy(part.bytes + LWS_PRE, bytes, length);
    if (!lws_ring_insert(connection->parts, &part, 1)) return -1;
    if (!connection->is_stopped && lws_ring_get_count_free_elements(connection->parts) < 8) {
        connection->is_stopped = 1;
        lws_rx_flow_control(wsi, 0);
    }
    lws_callback_on_writable(wsi);
    return 0;
}

static int answer(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *bytes, size_t length) {
    struct connection *connection = user;
    switch (reason) {
    case LWS_CALLBACK_ESTABLISHED:
        connection->parts = lws_ring_create(sizeof(struct part), PARTS, part_destroy);
        return connection->parts ? 0 : -1;
    case LWS_CALLBACK_CLOSED:
        // It is also called for a connection that was never established.
        if (connection && connection->parts) lws_ring_destroy(connection->parts);
        return 0;
    case LWS_CALLBACK_SERVER_WRITEABLE:
        return send_part(wsi, connection);
    case LWS_CALLBACK_RECEIVE:
        return keep_part(wsi, connection, bytes, length);
    default:
        return 0;
    }
}

int main(int count, char **arguments) {
    static const struct lws_protocols protocols[] = {
        {"echo", answer, sizeof(struct connection), PART_BYTES, 0, NULL, 0}, {NULL, NULL, 0, 0, 0, NULL, 0}};
    struct lws_context_creation_info info = {0};
    if (count < 2) return 2;
    lws_set_log_level(LLL_ERR, NULL);
    info.port = atoi(arguments[1]);
    info.iface = "127.0.0.1";
    info.protocols = protocols;
    info.pt_serv_buf_size = PART_BYTES;
    info.options = LWS_SERVER_OPTION_VALIDATE_UTF8;
    struct lws_context *context = lws_create_context(&info);
    if (!context) return 1;
    printf("libwebsockets listening on ws://127.0.0.1:%d\n", info.port);
    fflush(stdout);
    while (lws_service(context, 0) >= 0) {
    }
    lws_context_destroy(context);
}
