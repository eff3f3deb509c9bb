// Exceptions, type information, virtual functions and thread-local variables across a library's boundary.
#include "expect.h"
#include "library.hpp"
#include <memory>
#include <thread>

int main() {
    std::unique_ptr<Shape> shape(square(3));
    EXPECT(shape->area() == 9);
    try {
        square(-1);
        return 1;
    } catch (const Refused &refused) {
        EXPECT(refused.what() == std::string("a negative side"));
    }
    counter() = "main's";
    std::thread([] { EXPECT(counter() == "0"); }).join();
    EXPECT(counter() == "main's");
    puts("the library threw across its boundary");
}
