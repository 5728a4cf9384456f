-- A figure is shown at the size that it was drawn for: its width in dots, its dots an inch, and 96 dots of the page an inch. Pictures that do not
-- say how many dots an inch they have are shown dot for dot. On narrow screens a figure keeps a part of its width (see theme.scss).
local function width_of(image)
  local file = io.open(image.src, "rb")
  if image.attributes.width or not file then
    return image.attributes.width
  end
  local bytes = file:read("a")
  file:close()
  local known, size = pcall(pandoc.image.size, bytes)
  return known and bytes:find("pHYs", 1, true) and string.format("%d", math.floor(size.width * 96 / size.dpi_horz + 0.5))
end

function Image(image)
  local width = width_of(image)
  if width then
    image.attributes.width = width
    if width:match("^%d+$") then
      image.attributes.style = "--own: " .. width .. "px"
      image.classes:insert("figure-of-size")
    end
    return image
  end
end

-- Whether a line is a row of a table: three columns, with two spaces or more between them.
local function is_row(line)
  return line:find("%S  +%S.*%S  +%S") ~= nil
end

-- Whether a text is a table, whose rows must not break: it has some, and either more than two of them or no line that is very long. (.ci/texts.py sees to
-- it that rows of a table have at most 112 characters.)
local function is_table(text)
  local rows, longest = 0, 0
  for line in text:gmatch("[^\n]+") do
    rows = rows + (is_row(line) and 1 or 0)
    longest = math.max(longest, utf8.len(line) or #line)
  end
  return rows > 2 or rows > 0 and longest <= 112
end

-- What a cell prints wraps at the end of the line, unless it is a table, which scrolls.
function Div(div)
  if not div.classes:includes("cell-output") then
    return nil
  end
  return div:walk({
    CodeBlock = function(block)
      if not is_table(block.text) then
        block.classes:insert("wrapped")
        return block
      end
    end,
  })
end

-- Columns of a table that hold sentences are kept from becoming as narrow as a word where another column has long names (see theme.scss).
local SENTENCE = 30

function Table(of)
  local longest = {}
  local function each_cell(does)
    for _, body in ipairs(of.bodies) do
      for _, row in ipairs(body.body) do
        for column, cell in ipairs(row.cells) do
          does(column, cell)
        end
      end
    end
  end
  each_cell(function(column, cell)
    local text = pandoc.utils.stringify(cell.contents)
    local words = select(2, text:gsub("%S+", ""))
    longest[column] = math.max(longest[column] or 0, words > 2 and #text or 0)
  end)
  each_cell(function(column, cell)
    if longest[column] > SENTENCE then
      cell.classes:insert("sentence")
    end
  end)
  return of
end

-- The option of a command, such as --out, would break behind its dashes.
function Code(code)
  if code.text:match("^%-%-?%w[%w-]*$") then
    code.classes:insert("held")
    return code
  end
end

-- A class without a constructor of its own is documented with the arguments of Python's object, which it does not take: its name is shown alone.
function CodeBlock(block)
  local name = block.text:match("^def (%u%w*)%(\n%s+%*args, %*%*kwargs\n%):?$")
  if name then
    block.text = "class " .. name .. ":"
    return block
  end
end

-- A formula inside a line is held together with the signs of punctuation behind it, which a browser would let begin the next line. A long one does not
-- break, as words do: it may scroll by itself where the screen is narrow (see theme.scss).
local LONG = 40

function Inlines(inlines)
  local out = pandoc.Inlines({})
  local i = 1
  while i <= #inlines do
    local formula, behind = inlines[i], inlines[i + 1]
    if formula.t == "Math" and formula.mathtype == "InlineMath" then
      local long = #formula.text > LONG
      local signs = behind and behind.t == "Str" and behind.text:match("^[.,;:!?)]+")
      if long or signs then
        local held = pandoc.Inlines({ formula })
        if signs then
          held:insert(pandoc.Str(signs))
          behind.text = behind.text:sub(#signs + 1)
        end
        formula = pandoc.Span(held, pandoc.Attr("", { long and "long-formula" or "held" }))
      end
    end
    if formula.t ~= "Str" or formula.text ~= "" then
      out:insert(formula)
    end
    i = i + 1
  end
  return out
end

-- A formula carries its source with it, which no browser shows, but which the search of the site would show behind the formula. It is left out, unless a
-- formula cannot be written as MathML; pandoc then warns of it, as it does of itself.
local MATHML = pandoc.WriterOptions({ html_math_method = "mathml" })

local function without_source(formula)
  local written = pandoc.write(pandoc.Pandoc({ pandoc.Plain({ formula }) }), "html", MATHML)
  local bare, sources = written:gsub('<annotation encoding="application/x%-tex">.-</annotation>', "")
  return sources == 1 and pandoc.RawInline("html", bare) or nil
end

return { -- the formulas after the rest, which looks at their source
  { Image = Image, Div = Div, Table = Table, Code = Code, CodeBlock = CodeBlock, Inlines = Inlines },
  { Math = without_source },
}
