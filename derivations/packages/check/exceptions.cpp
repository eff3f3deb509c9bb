// Exceptions: unwinding through frames with destructors, matching by base class, nesting, moving between threads.
#include "expect.h"
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <typeinfo>
#include <vector>

static int alive = 0;
struct Counted {
    Counted() { alive++; }
    ~Counted() { alive--; }
};

struct Base { virtual ~Base() = default; };
struct Left : virtual Base {};
struct Right : virtual Base {};
struct Both : Left, Right {};

[[gnu::noinline]] static void descend(int depth) {
    Counted counted;
    if (depth == 0) throw std::out_of_range("the bottom");
    descend(depth - 1);
    EXPECT(!"unreachable");
}

static void nest() {
    try {
        descend(3);
    } catch (...) {
        std::throw_with_nested(std::runtime_error("outer"));
    }
}

int main() {
    try {
        descend(100);
        return 1;
    } catch (const std::logic_error &error) {
        EXPECT(alive == 0 && error.what() == std::string("the bottom"));
        EXPECT(typeid(error) == typeid(std::out_of_range));
    }

    try {
        nest();
        return 1;
    } catch (const std::runtime_error &outer) {
        try {
            std::rethrow_if_nested(outer);
            return 1;
        } catch (const std::exception &inner) {
            EXPECT(inner.what() == std::string("the bottom"));
        }
    }

    std::exception_ptr carried;
    std::thread([&] {
        try {
            (void)std::vector<int>().at(1);
        } catch (...) {
            carried = std::current_exception();
        }
    }).join();
    try {
        std::rethrow_exception(carried);
    } catch (const std::out_of_range &) {
        carried = nullptr;
    }
    EXPECT(!carried && std::uncaught_exceptions() == 0);

    Both both;
    Base *base = &both;
    EXPECT(dynamic_cast<Right *>(base) && dynamic_cast<Left *>(dynamic_cast<Right *>(base)));
    EXPECT(!dynamic_cast<Both *>(static_cast<Base *>(new Left)));
    try {
        throw Both();
    } catch (Right &) {
    }

    puts("exceptions were thrown, matched, nested and carried over");
}
