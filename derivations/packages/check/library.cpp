#include "library.hpp"

Shape::~Shape() = default;

namespace {
struct Square final : Shape {
    double side;
    explicit Square(double side) : side(side) {}
    double area() const override { return side * side; }
};
}  // namespace

Shape *square(double side) {
    if (side < 0) throw Refused("a negative side");
    return new Square(side);
}

std::string &counter() {
    static thread_local std::string text = "0";
    return text;
}
