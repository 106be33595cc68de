// Echoes messages with Boost.Beast: asynchronous, one thread, a concurrency hint of 1 and no strands, compressed
// where the client offers it.
//
// `beast PORT`

#include <cstdlib>
#include <iostream>
#include <memory>

#define BOOST_ASIO_DISABLE_THREADS

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/websocket.hpp>

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = beast::websocket;
using tcp = asio::ip::tcp;
using Error = beast::error_code;
using Socket = asio::basic_stream_socket<tcp, asio::io_context::executor_type>;

class Connection : public std::enable_shared_from_this<Connection> {
    websocket::stream<Socket> stream;
    beast::flat_buffer buffer;

  public:
    explicit Connection(Socket socket) : stream(std::move(socket)) {}

    void run() {
        stream.next_layer().set_option(tcp::no_delay(true));
        websocket::permessage_deflate deflate;
        deflate.server_enable = true;
        stream.set_option(deflate);
        // Without a limit, a header that announces 2^62 bytes would end the process.
        stream.read_message_max(64 << 20);
        stream.auto_fragment(false);
        // Compressed messages are fragmented all the same, by the size of this buffer.
        stream.write_buffer_bytes(64 * 1024);
        stream.async_accept([self = shared_from_this()](Error error) {
            if (!error) self->read();
        });
    }

  private:
    void read() {
        stream.async_read(buffer, [self = shared_from_this()](Error error, std::size_t) {
            if (!error) self->write();
        });
    }

    void write() {
        stream.text(stream.got_text());
        stream.async_write(buffer.data(), [self = shared_from_this()](Error error, std::size_t bytes) {
            if (error) return;
            self->buffer.consume(bytes);
            self->read();
        });
    }
};

template <typename Acceptor> void accept(Acceptor &acceptor) {
    acceptor.async_accept([&acceptor](Error error, Socket socket) {
        if (!error) std::make_shared<Connection>(std::move(socket))->run();
        accept(acceptor);
    });
}

int main(int, char **arguments) {
    asio::io_context context(1);
    const tcp::endpoint address(asio::ip::make_address("127.0.0.1"), static_cast<unsigned short>(std::atoi(arguments[1])));
    asio::basic_socket_acceptor<tcp, asio::io_context::executor_type> acceptor(context, address);
    std::cout << "beast listening on ws://" << address << std::endl;
    accept(acceptor);
    context.run();
}
