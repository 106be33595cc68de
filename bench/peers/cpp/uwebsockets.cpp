// Echoes messages with uWebSockets: one thread, epoll, and TLS if it is compiled with -DLIBUS_USE_OPENSSL. The settings are those of the library's own
// examples/EchoServer.cpp, except that every message is compressed when the client has negotiated
// permessage-deflate, and that only 127.0.0.1 is served.
//
// `uwebsockets PORT`; with TLS, the environment names TLS_CERT and TLS_KEY.

#include <cstdlib>
#include <iostream>

#include "App.h"

int main(int, char **arguments) {
    struct Nothing {};
    const int port = std::atoi(arguments[1]);
#ifdef LIBUS_USE_OPENSSL
    const char *scheme = "wss";
    uWS::SSLApp({.key_file_name = std::getenv("TLS_KEY"), .cert_file_name = std::getenv("TLS_CERT")})
#else
    const char *scheme = "ws";
    uWS::App()
#endif
        .ws<Nothing>(
            "/*",
            {.compression = uWS::CompressOptions(uWS::DEDICATED_COMPRESSOR | uWS::DEDICATED_DECOMPRESSOR),
             .maxPayloadLength = 100 * 1024 * 1024,
             .idleTimeout = 16,
             .maxBackpressure = 100 * 1024 * 1024,
             .message =
                 [](auto *socket, std::string_view message, uWS::OpCode opcode) {
                     socket->send(message, opcode, true);
                 }})
        .listen("127.0.0.1", port,
                [port, scheme](auto *listener) {
                    if (!listener) {
                        std::cerr << "uwebsockets: cannot listen on port " << port << std::endl;
                        std::exit(1);
                    }
                    std::cout << "uwebsockets listening on " << scheme << "://127.0.0.1:" << port << std::endl;
                })
        .run();
}
