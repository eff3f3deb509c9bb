// A library of one's own: what crosses its boundary.
#pragma once
#include <stdexcept>
#include <string>

struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Shape {
    virtual ~Shape();
    virtual double area() const = 0;
};

Shape *square(double side);  // throws Refused
std::string &counter();
