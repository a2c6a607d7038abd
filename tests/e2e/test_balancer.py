"""The balancer of the tests goes round, leaves out who is dead, and takes it back."""

import socket
import socketserver
import threading

import pytest
from tests.e2e.balancer import Balancer
from tests.e2e.product import until


class Named(socketserver.ThreadingTCPServer):
    """Says its name to whoever connects, then repeats what it hears."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, name, address=("127.0.0.1", 0)):
        self.name = name

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(name)
                while heard := self.request.recv(1024):
                    self.request.sendall(heard)

        super().__init__(address, Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def end(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def one():
    server = Named(b"1")
    yield server
    server.end()


@pytest.fixture
def two():
    server = Named(b"2")
    yield server
    server.end()


def name_behind(balancer):
    with socket.create_connection(balancer.address, 10) as connection:
        return connection.recv(1)


def test_connections_go_round_and_carry_both_ways(one, two):
    with Balancer([one.server_address, two.server_address]) as balancer:
        assert [name_behind(balancer) for _ in range(4)] == [b"1", b"2", b"1", b"2"]
        with socket.create_connection(balancer.address, 10) as connection:
            assert connection.recv(1) == b"1"
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""


def test_who_refuses_is_left_out_until_it_answers_again(one):
    other = Named(b"2")
    where = other.server_address
    with Balancer([one.server_address, where]) as balancer:
        other.end()
        assert {name_behind(balancer) for _ in range(4)} == {b"1"}
        assert balancer.down == {where}
        again = Named(b"2", where)
        until("it is taken back", lambda: not balancer.down)
        assert {name_behind(balancer) for _ in range(4)} == {b"1", b"2"}
        again.end()


def test_where_nobody_answers_the_connection_ends():
    gone = Named(b"1")
    gone.end()
    with Balancer([gone.server_address]) as balancer:
        assert name_behind(balancer) == b""
