// Echoes messages with uWebSockets: one thread, epoll, no TLS. The settings are those of the library's own
// examples/EchoServer.cpp, except that every message is compressed when the client has negotiated
// permessage-deflate, and that only 127.0.0.1 is served.
//
// `uwebsockets PORT`

#include <cstdlib>
#include <iostream>

#include "App.h"

int main(int, char **arguments) {
    struct Nothing {};
    const int port = std::atoi(arguments[1]);
    uWS::App()
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
                [port](auto *listener) {
                    if (!listener) {
                        std::cerr << "uwebsockets: cannot listen on port " << port << std::endl;
                        std::exit(1);
                    }
                    std::cout << "uwebsockets listening on ws://127.0.0.1:" << port << std::endl;
                })
        .run();
}
