// <regex>: parsing, matching, replacing and iterating, with a locale behind it.
#include "expect.h"
#include <regex>
#include <string>
#include <vector>

int main() {
    const std::regex triple("([a-z0-9_]+)-([a-z]+)-linux-(gnu|musl)");
    std::smatch parts;
    const std::string text = "aarch64-unknown-linux-musl";
    EXPECT(std::regex_match(text, parts, triple));
    EXPECT(parts[1] == "aarch64" && parts[3] == "musl");
    EXPECT(!std::regex_match(std::string("aarch64-linux"), triple));

    EXPECT(std::regex_replace(std::string("a1b22c333"), std::regex("[0-9]+"), "<$&>") == "a<1>b<22>c<333>");

    const std::string list = "musl, libc++,clang ,lld";
    const std::regex word("[^ ,]+");
    std::vector<std::string> words;
    for (std::sregex_iterator it(list.begin(), list.end(), word), end; it != end; ++it)
        words.push_back(it->str());
    EXPECT(words.size() == 4 && words[1] == "libc++");

    bool refused = false;
    try {
        std::regex unbalanced("(");
    } catch (const std::regex_error &error) {
        refused = error.code() == std::regex_constants::error_paren;
    }
    EXPECT(refused);
    puts("patterns were matched, replaced and refused");
}
