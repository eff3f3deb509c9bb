// Streams, formatting, containers, regular expressions: the parts of libc++ that are compiled, not just headers.
#include "expect.h"
#include <charconv>
#include <format>
#include <iomanip>
#include <iostream>
#include <locale>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

int main() {
    std::ostringstream out;
    out << std::hex << std::showbase << 255 << ' ' << std::fixed << std::setprecision(3) << 3.14159 << ' ' << std::boolalpha << true;
    EXPECT(out.str() == "0xff 3.142 true");

    std::istringstream in("12 4.5 word");
    int number; double real; std::string word;
    EXPECT((in >> number >> real >> word) && number == 12 && real == 4.5 && word == "word");
    EXPECT(!(in >> number) && in.eof());

    EXPECT(std::format("{:>6}|{:<4}|{:.2e}", "ab", 7, 12345.678) == "    ab|7   |1.23e+04");
    double parsed = 0;
    std::string text = "0.1";
    EXPECT(std::from_chars(text.data(), text.data() + text.size(), parsed).ec == std::errc() && parsed == 0.1);

    std::smatch match;
    std::string version = "musl-1.2.5";
    EXPECT(std::regex_match(version, match, std::regex("([a-z]+)-([0-9.]+)")) && match[2] == "1.2.5");

    std::map<std::string, std::shared_ptr<std::vector<int>>> map;
    map["numbers"] = std::make_shared<std::vector<int>>(std::initializer_list<int>{3, 1, 2});
    EXPECT(map.at("numbers")->size() == 3 && !map.contains("none"));
    EXPECT(std::use_facet<std::ctype<char>>(std::locale::classic()).toupper('x') == 'X');

    std::cout << "streams read and wrote what was expected" << std::endl;
}
